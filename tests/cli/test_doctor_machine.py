"""What `kvrt doctor` says of machines of other kinds, as copies of /proc and /sys."""

import resource
from pathlib import Path

import pytest
from kvrt_cli.checks import software, system
from kvrt_cli.checks.check import Check, Mark


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    files = {
        "proc/cpuinfo": "model name : Foo 9000\nflags : fpu avx2 fma avx512f\n",
        "proc/meminfo": "MemTotal: 33554432 kB\nMemAvailable: 16777216 kB\n",
        "proc/self/cgroup": "0::/user/job\n",
        "sys/fs/cgroup/user/memory.max": "2147483648\n",
        "sys/fs/cgroup/user/job/memory.max": "max\n",
        "sys/fs/cgroup/user/job/cpu.max": "50000 100000\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]\n",
        "proc/sys/vm/max_map_count": "1000\n",
        "proc/sys/vm/overcommit_memory": "2\n",
        "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
        "sys/bus/pci/devices/0000:01:00.0/class": "0x030200\n",
        "sys/bus/pci/devices/0000:02:00.0/vendor": "0x1002\n",
        "sys/bus/pci/devices/0000:02:00.0/class": "0x020000\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_limits_of_the_machine_are_found_with_the_command_that_lifts_them(machine: Path) -> None:
    found = {check.name: check for check in system.system(machine)}
    assert "Foo 9000" in found["cpu"].text
    assert found["cpu"].data["isa"] == ["avx2", "fma", "avx512f"]
    assert "allows the time of 0.5" in found["cpu"].text
    assert found["cpu"].fix == "kvrt run --threads 1"
    assert found["memory"].text.startswith("16 GiB of 32 GiB")
    assert "limit is 2 GiB" in found["memory"].text
    for name in ("thp", "map_count", "overcommit"):
        assert found[name].mark is Mark.WARN
        assert "sudo" in found[name].fix


def test_control_groups_of_version_1_are_found_whatever_they_are_called(machine: Path) -> None:
    for name, text in {
        "proc/self/cgroup": "5:cpu,cpuacct:/user/a:b\n4:memory:/user/a:b\n1:name=systemd:/\n",
        "sys/fs/cgroup/memory/user/a:b/memory.limit_in_bytes": "1073741824\n",
        "sys/fs/cgroup/cpu/user/a:b/cpu.cfs_quota_us": "150000\n",
        "sys/fs/cgroup/cpu/user/a:b/cpu.cfs_period_us": "100000\n",
    }.items():
        (machine / name).parent.mkdir(parents=True, exist_ok=True)
        (machine / name).write_text(text)
    found = {check.name: check for check in system.system(machine)}
    assert "limit is 1 GiB" in found["memory"].text
    assert "allows the time of 1.5" in found["cpu"].text


def write(machine: Path, files: dict[str, str]) -> dict[str, Check]:
    """What the doctor says of a machine with these files changed."""
    for name, text in files.items():
        (machine / name).write_text(text)
    return {check.name: check for check in system.system(machine)}


def test_a_machine_in_order_is_told_so(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    found = write(
        machine,
        {
            "sys/fs/cgroup/user/memory.max": f"{32 << 30}\n",
            "sys/fs/cgroup/user/job/cpu.max": "200000 100000\n",
            "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
            "proc/sys/vm/max_map_count": "65530\n",
            "proc/sys/vm/overcommit_memory": "0\n",
        },
    )
    assert {name for name, check in found.items() if check.mark is not Mark.OK} == set()
    assert not any(check.fix for check in found.values())
    assert "overcommit" not in found
    assert found["thp"].text == "transparent huge pages: madvise"
    assert found["map_count"].text == "vm.max_map_count is 65530"
    assert found["memory"].text == "16 GiB of 32 GiB memory available"
    assert found["memory"].data["cgroup_limit_bytes"] is None
    assert "control group" not in found["cpu"].text
    assert (found["cpu"].data["processors"], found["cpu"].data["quota"]) == (2, 2.0)
    assert found["ulimit.memlock"].text == "locked memory: unlimited"


@pytest.mark.parametrize(
    ("available", "limit", "little"),
    [
        ((1 << 20) - 1, "max", True),
        (1 << 20, "max", False),
        (1 << 24, str((1 << 30) - 1), True),
        (1 << 24, str(1 << 30), False),
    ],
)
def test_memory_below_a_gibibyte_is_little(
    machine: Path, available: int, limit: str, little: bool
) -> None:
    meminfo = f"MemTotal: 33554432 kB\nMemAvailable: {available} kB\n"
    files = {"proc/meminfo": meminfo, "sys/fs/cgroup/user/memory.max": limit}
    check = write(machine, files)["memory"]
    assert (check.mark is Mark.WARN) == little == ("little for a model" in check.text)
    assert bool(check.fix) == little
    assert check.data["available_bytes"] == available << 10


@pytest.mark.parametrize(
    ("name", "limit", "mark", "text", "fix"),
    [
        ("as", 4 << 30, Mark.WARN, "addresses are limited to 4 GiB", "ulimit -v unlimited"),
        ("as", -1, Mark.OK, "addresses: unlimited", ""),
        ("nofile", 1023, Mark.WARN, "open files: 1023", "ulimit -n 1024"),
        ("nofile", 1024, Mark.OK, "open files: 1024", ""),
        ("memlock", (64 << 20) - 4096, Mark.OK, "may need more: ulimit -l unlimited", ""),
        ("memlock", 64 << 20, Mark.OK, "locked memory: 64 MiB", ""),
    ],
)
def test_limits_of_the_process_are_found_with_the_command_that_lifts_them(
    machine: Path, monkeypatch: pytest.MonkeyPatch,
    name: str, limit: int, mark: Mark, text: str, fix: str,
) -> None:  # fmt: skip
    asked = getattr(resource, f"RLIMIT_{name.upper()}")
    monkeypatch.setattr("resource.getrlimit", lambda which: (limit if which == asked else -1, -1))
    check = write(machine, {})[f"ulimit.{name}"]
    assert (check.mark, check.fix) == (mark, fix)
    assert text in check.text
    assert ("may need more" in check.text) == (name == "memlock" and limit < 64 << 20)
    others = [each for each in ("as", "nofile", "memlock") if each != name]
    found = write(machine, {})
    assert {found[f"ulimit.{each}"].mark for each in others} == {Mark.OK}


def test_a_machine_that_tells_nothing_is_no_error(tmp_path: Path) -> None:
    assert {check.mark for check in system.system(tmp_path)} <= {Mark.OK, Mark.WARN}


def test_a_gpu_that_torch_is_not_built_for_is_noticed(machine: Path) -> None:
    assert software.present_gpus(machine) == [("NVIDIA", "cuda", "CUDA")]
