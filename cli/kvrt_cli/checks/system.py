"""The operating system, its memory, and the limits that stand in the way of reserving addresses.

Read from /proc and /sys, of which `root` may be a copy; what is not there is left out.
"""

import os
import platform
import resource
from collections.abc import Iterator
from pathlib import Path

from kvrt.units import GIB, MIB, format_bytes
from kvrt_cli.checks.check import Check, Mark

GROUP = "system"
ROOT = Path("/")

USEFUL_ISA = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_bf16", "avx512_vnni",
    "amx_bf16", "amx_int8",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
MAP_COUNT = 65530
"""Linux's default of vm.max_map_count; with a mapping for each 2 MiB chunk that is 128 GiB."""
OPEN_FILES = 1024


def system(root: Path = ROOT) -> Iterator[Check]:
    yield _platform()
    yield _processor(root)
    yield _memory(root)
    yield from _huge_pages(root)
    yield from _overcommit(root)
    yield from _map_count(root)
    yield _address_space()
    yield _locked_memory()
    yield _open_files()


def _platform() -> Check:
    name = platform.system()
    try:
        distribution = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        distribution = ""
    text = ", ".join(
        part for part in (f"{name} {platform.release()}", distribution, platform.machine()) if part
    )
    if name != "Linux":
        return Check(GROUP, "os", Mark.WARN, f"{text}: kvrt is tested on Linux only")
    return Check(GROUP, "os", Mark.OK, text)


def _processor(root: Path) -> Check:
    lines = [line.partition(":") for line in _read(root / "proc/cpuinfo").splitlines()]
    fields = {key.strip().lower(): value.strip() for key, _, value in reversed(lines)}
    model = fields.get("model name", platform.machine())
    flags = (fields.get("flags") or fields.get("features") or "").split()
    isa = [flag for flag in USEFUL_ISA if flag in flags]
    usable, quota = len(os.sched_getaffinity(0)), _cpu_quota(root)
    text = f"{model}, {usable} of {os.cpu_count()} processors; {' '.join(isa)}"
    data = {"processors": usable, "quota": quota, "isa": isa}
    if quota and quota < usable:
        return Check(
            GROUP, "cpu", Mark.WARN,
            f"{text}; the control group allows the time of {quota:g}",
            fix=f"kvrt run --threads {max(1, int(quota))}",
            data=data,
        )  # fmt: skip
    return Check(GROUP, "cpu", Mark.OK, text, data=data)


def _memory(root: Path) -> Check:
    lines = [line.split() for line in _read(root / "proc/meminfo").splitlines()]
    sizes = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) > 1}
    total, free = sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0)
    limit = min((limit for limit in _group_limits(root) if limit < total), default=None)
    text = f"{format_bytes(free)} of {format_bytes(total)} memory available"
    if limit is not None:
        text += f"; the control group's limit is {format_bytes(limit)}"
    data = {"total_bytes": total, "available_bytes": free, "cgroup_limit_bytes": limit}
    if min(free, limit or free) < GIB:
        fix = "end other programs, or raise the container's memory limit"
        return Check(GROUP, "memory", Mark.WARN, f"{text}: little for a model", fix, data=data)
    return Check(GROUP, "memory", Mark.OK, text, data=data)


def _huge_pages(root: Path) -> Iterator[Check]:
    path = "sys/kernel/mm/transparent_hugepage/enabled"
    setting = _read(root / path).partition("[")[2].partition("]")[0]
    if setting == "never":
        yield Check(
            GROUP, "thp", Mark.WARN,
            "transparent huge pages are off: the CPU reads its KV cache 13-21 % slower",
            fix=f"echo madvise | sudo tee /{path}",
        )  # fmt: skip
    elif setting:
        yield Check(GROUP, "thp", Mark.OK, f"transparent huge pages: {setting}")


def _overcommit(root: Path) -> Iterator[Check]:
    if _read(root / "proc/sys/vm/overcommit_memory").strip() == "2":
        yield Check(
            GROUP, "overcommit", Mark.WARN,
            "vm.overcommit_memory is 2: memory is promised to chunks before it is used",
            fix="sudo sysctl -w vm.overcommit_memory=0",
        )  # fmt: skip


def _map_count(root: Path) -> Iterator[Check]:
    text = _read(root / "proc/sys/vm/max_map_count").strip()
    if not text:
        return
    count = int(text)
    data = {"max_map_count": count}
    if count < MAP_COUNT:
        yield Check(
            GROUP, "map_count", Mark.WARN,
            f"vm.max_map_count is {count}: a large KV cache may need more mappings",
            fix=f"sudo sysctl -w vm.max_map_count={16 * (MAP_COUNT + 6)}",
            data=data,
        )  # fmt: skip
    else:
        yield Check(GROUP, "map_count", Mark.OK, f"vm.max_map_count is {count}", data=data)


def _address_space() -> Check:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return Check(GROUP, "ulimit.as", Mark.OK, "addresses: unlimited")
    return Check(
        GROUP, "ulimit.as", Mark.WARN,
        f"addresses are limited to {format_bytes(limit)}; on a CPU, a third can be KV memory",
        fix="ulimit -v unlimited",
        data={"bytes": limit},
    )  # fmt: skip


def _locked_memory() -> Check:
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    shown = "unlimited" if limit == resource.RLIM_INFINITY else format_bytes(limit)
    few = limit != resource.RLIM_INFINITY and limit < 64 * MIB
    note = " (a GPU's host buffers may need more: ulimit -l unlimited)" if few else ""
    return Check(
        GROUP, "ulimit.memlock", Mark.OK, f"locked memory: {shown}{note}", data={"bytes": limit}
    )


def _open_files() -> Check:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    text, data = f"open files: {limit}", {"files": limit}
    if limit != resource.RLIM_INFINITY and limit < OPEN_FILES:
        return Check(GROUP, "ulimit.nofile", Mark.WARN, text, f"ulimit -n {OPEN_FILES}", data=data)
    return Check(GROUP, "ulimit.nofile", Mark.OK, text, data=data)


# --- control groups ------------------------------------------------------------------------------


def _group_limits(root: Path) -> Iterator[int]:
    """The memory limits of this process's control group and those around it."""
    for folder in _group_folders(root, "memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            text = _read(folder / name).strip()
            if text.isdigit():
                yield int(text)


def _cpu_quota(root: Path) -> float | None:
    """How many processors' time the control groups allow; None: all."""
    quotas = []
    for folder in _group_folders(root, "cpu"):
        text = _read(folder / "cpu.max") or " ".join(
            _read(folder / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        )
        words = text.split()
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit():
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def _group_folders(root: Path, controller: str) -> Iterator[Path]:
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        base = root / "sys/fs/cgroup"
        if number != "0":
            if controller not in controllers.split(","):
                continue
            base /= controller
        below = Path(path.lstrip("/"))
        for part in (below, *below.parents):
            yield base / part


def _read(path: Path) -> str:
    """A small file of the system; empty where there is none, or it may not be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
