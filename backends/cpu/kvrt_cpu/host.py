"""What the system says about this machine: its processor, its memory and their limits.

Read from /proc and /sys, of which `root` may be a copy. See proc(5) and the kernel's cgroup-v1 and
cgroup-v2 documents.
"""

import math
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")

RESERVE_BYTES = 128 << 20
"""Memory that is left alone. Linux promises more memory than it has and ends the process that
touches the last of it, so we stop before: with this many bytes to spare."""

_CACHE_MATTERS_BELOW = 1 << 30


def processor(root: Path = ROOT) -> str:
    """The product name, e.g. ``AMD EPYC 9354 32-Core Processor``."""
    for line in (root / "proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model") and value.strip():
            return value.strip()
    return platform.machine()


def processors(root: Path = ROOT) -> int:
    """How many processors this process may keep busy: its affinity, within its groups' quotas."""
    counts = [len(os.sched_getaffinity(0))]
    for folder, version in _folders(root, "cpu"):
        names = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        files = [path for name in names if (path := folder / name).exists()]
        words = [word for path in files for word in path.read_text().split()]
        if len(words) == 2 and words[0] not in ("max", "-1"):
            counts.append(math.ceil(int(words[0]) / int(words[1])))
    return min(counts)


def huge_pages(root: Path = ROOT) -> tuple[str, int]:
    """The setting of transparent huge pages (always, madvise or never), and their size in bytes."""
    folder = root / "sys/kernel/mm/transparent_hugepage"
    if not folder.exists():
        return "never", 0
    setting = (folder / "enabled").read_text().partition("[")[2].partition("]")[0]
    return setting, int((folder / "hpage_pmd_size").read_text())


def mappings(root: Path = ROOT) -> tuple[int, int]:
    """How many memory mappings this process has, and how many it may have."""
    with (root / "proc/self/maps").open("rb") as maps:
        count = sum(1 for _ in maps)
    return count, int((root / "proc/sys/vm/max_map_count").read_text())


def raise_map_count(limit: int) -> str:
    """The command that mends a `limit` of mappings that is too low."""
    return f"sudo sysctl -w vm.max_map_count={4 * limit}"


def _field(text: str, key: str) -> int:
    """The number after `key` at the beginning of a line."""
    for line in text.splitlines():
        words = line.split()
        if words and words[0] == key:
            return int(words[1])
    return 0


@dataclass(frozen=True, slots=True)
class _Names:
    limits: tuple[str, ...]
    used: str
    cache: str


_NAMES = {
    1: _Names(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
    2: _Names(("memory.max", "memory.high"), "memory.current", "inactive_file"),
}
_UNLIMITED = 1 << 62


@dataclass(frozen=True, slots=True)
class _Group:
    """A control group that may limit this process's memory."""

    path: Path
    names: _Names

    def limit(self) -> int:
        """The lowest limit in bytes; a huge number if there is none."""
        files = [path for name in self.names.limits if (path := self.path / name).exists()]
        texts = [path.read_text().strip() for path in files]
        return min((int(text) for text in texts if text != "max"), default=_UNLIMITED)

    def free(self, exact: bool) -> int:
        free = self.limit() - int((self.path / self.names.used).read_text())
        if exact or free < _CACHE_MATTERS_BELOW:
            # Unused file pages count as used, but are dropped before the limit bites.
            free += _field((self.path / "memory.stat").read_text(), self.names.cache)
        return free


class _Addresses:
    """The limit on a process's addresses (``ulimit -v``), which counts what is only reserved, too.

    A byte of KV memory takes two addresses: in the span where it is mapped, and at home. A third of
    what is left is for everything else: weights, torch, the stacks of threads.
    """

    _SHARE = 3

    def __init__(self, root: Path) -> None:
        self._statm = root / "proc/self/statm"
        limits = root / "proc/self/limits"
        self._limit = math.inf
        for line in limits.read_text().splitlines() if limits.exists() else ():
            name, _, values = line.partition("Max address space")
            if not name and values.split()[0].isdigit():
                self._limit = int(values.split()[0])
        self.for_memory = self.free() // self._SHARE
        """Bytes of memory that there can be."""

    def free(self) -> float:
        if self._limit == math.inf:
            return math.inf
        used = int(self._statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        return max(0, self._limit - used)


class HostMemory:
    """The memory this process may use: the machine's, within the limits of its control groups and
    of its addresses.

    The groups that have a limit are found once; their limits and use are read anew at every call.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._meminfo = root / "proc/meminfo"
        self._status = root / "proc/self/status"
        text = self._meminfo.read_text()
        physical = _field(text, "MemTotal:") * 1024
        groups = [_Group(path, _NAMES[version]) for path, version in _folders(root, "memory")]
        self._groups = [group for group in groups if group.limit() < physical]
        self._addresses = _Addresses(root)
        self._physical = int(min(physical, self._addresses.for_memory))

    def total(self) -> int:
        """Bytes that there are."""
        return min([self._physical, *(group.limit() for group in self._groups)])

    def free(self, *, exact: bool = True) -> int:
        """Bytes that can still be taken, the reserve subtracted; never below zero.

        With ``exact=False`` it may leave out memory that holds unused file pages (two to ten times
        as fast).
        """
        left = int(min(self._untaken(exact), self._addresses.free())) - RESERVE_BYTES
        return max(0, min(left, self.total()))

    def others(self) -> int:
        """Bytes of it that are not free, and not this process's own: what may come free, about.

        Own are its private pages, and those that it shares; files that are mapped can be dropped.
        """
        status = self._status.read_text()
        own = 1024 * (_field(status, "RssAnon:") + _field(status, "RssShmem:"))
        return max(0, self.total() - self._untaken(exact=True) - own)

    def _untaken(self, exact: bool) -> int:
        """Bytes that nobody holds, the reserve included."""
        free = _field(self._meminfo.read_text(), "MemAvailable:") * 1024
        return min([free, *(group.free(exact) for group in self._groups)])


def _folders(root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """The control groups of this process and those around them, as far as they can be seen.

    Yields each one's folder and its version, 1 or 2.
    """
    mounts = {}
    for line in (root / "proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ")[:3]
        if kind == "cgroup2":
            mounts[2] = left.split()[3:5]
        elif kind == "cgroup" and controller in options.split(","):
            mounts[1] = left.split()[3:5]
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        version = 2 if number == "0" else 1
        if version not in mounts or (version == 1 and controller not in controllers.split(",")):
            continue
        visible, mounted = mounts[version]
        group = PurePosixPath(path)
        below = group.relative_to(visible) if group.is_relative_to(visible) else PurePosixPath()
        for part in (below, *below.parents):
            yield root / mounted.lstrip("/") / part, version
