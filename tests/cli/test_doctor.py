"""`kvrt doctor`."""

import importlib.metadata
import json
import resource
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kvrt_cli.checks import device, software, system
from kvrt_cli.checks.check import Check, Mark, contained

from kvrt.errors import DeviceError
from kvrt.registry import load
from kvrt.spi import Chunk, Device, Span
from kvrt.testing import reference
from kvrt.testing.mutants import MutantBackend
from kvrt.testing.mutants.memory import KeepsDestroyedChunks, MapsZeroes
from kvrt.testing.mutants.mutant import Mutant
from kvrt.wrappers.parts import WrappedMemory

from .conftest import Kvrt

Findings = dict[tuple[str, str], dict[str, Any]]


def findings(stdout: str) -> Findings:
    return {(check["group"], check["name"]): check for check in json.loads(stdout)["checks"]}


def test_every_group_reports_and_the_cpu_is_proved_by_doing(kvrt: Kvrt) -> None:
    result = kvrt("doctor", "--json", "--only", "system,python,libraries,environment,cpu")
    report = json.loads(result.stdout)
    found = findings(result.stdout)
    assert {group for group, _ in found} >= {"system", "python", "libraries", "backends", "cpu:0"}
    for name in ("device", "memory", "attention.float32", "attention.bfloat16", "latency"):
        assert found["cpu:0", name]["mark"] == "ok", found["cpu:0", name]
    memory = found["cpu:0", "memory"]["data"]
    assert memory["taken_bytes"] >= memory["written_bytes"] // 2
    assert memory["kept_bytes"] <= memory["written_bytes"] // 4
    assert memory["chunks_left"] == 0
    assert found["cpu:0", "bandwidth"]["data"]["read_bytes_per_s"] > 1e8
    assert found["cpu:0", "latency"]["data"]["map_us"] > 0
    assert found["cpu:0", "budget"]["data"]["budget_bytes"] > 0
    assert found["backends", "cpu"]["data"]["spi"] == 2
    assert found["python", "kvrt"]["data"]["version"]
    assert result.exit_code == report["exit_code"]


def test_what_is_printed_for_people(kvrt: Kvrt) -> None:
    result = kvrt("doctor", "--only", "python")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1] == "python"
    assert result.stdout.splitlines()[2].startswith("  [ok] Python 3.")
    assert result.stdout.splitlines()[-1] == "No problems found in 2 checks: kvrt is ready."


def test_a_fix_is_printed_as_it_must_be_typed(kvrt: Kvrt, monkeypatch: pytest.MonkeyPatch) -> None:
    """rich would read [cuda] as markup and drop it."""
    requirements = [
        'no-such-library>=3.6; extra == "cuda"',
        "also-missing[x] >=2",
        "click>=99",
        "never-shown>=1 ; extra == 'test'",
        "not-there>=1 ; extra == 'zstd'",
        "rich",
    ]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: requirements)
    for color in ("never", "always"):
        result = kvrt("doctor", "--only", "libraries", "--color", color)
        assert "pip install 'kvrt[cuda]'" in result.stdout
        assert "[-]" in result.stdout
        assert "[x]" in result.stdout
        assert "pip install 'also-missing>=2'" in result.stdout
        assert "is older than 99 (kvrt needs it)" in result.stdout
        assert "never-shown" not in result.stdout
        assert "no-such-library is not installed (only for the cuda backend)" in result.stdout
        assert "not-there is not installed (only for kvrt[zstd])" in result.stdout
    assert result.exit_code == 1
    summary = "Found issues in 1 category (libraries): 2 broken, 0 worth mending."
    assert summary in kvrt("doctor", "--only", "libraries").stdout


def test_strict_fails_for_what_is_worth_mending(kvrt: Kvrt) -> None:
    env = {"KVRT_PROT": "8000", "KVRT_PORT": "tcp://10.0.0.1:80", "KVRT_BACKEND": "cpu"}
    result = kvrt("doctor", "--only", "environment", env=env)
    assert result.exit_code == 0
    assert "[!]  KVRT_PROT is not a variable that kvrt reads" in result.stdout
    assert "fix: unset KVRT_PROT" in result.stdout
    assert "KVRT_PORT" not in result.stdout
    assert "[ok] KVRT_BACKEND=cpu" in result.stdout
    assert kvrt("doctor", "--only", "environment", "--strict", env=env).exit_code == 1


@pytest.mark.parametrize(
    ("environ", "folder", "told"),
    [
        ({}, "{home}/.cache/huggingface/hub", "token not set"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub", "token not set"),
        ({"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/h/hub", "token not set"),
        ({"HF_HUB_CACHE": "/c", "HF_HOME": "/h", "HF_TOKEN": "t"}, "/c", "token set"),
        ({"HF_HOME": "{home}", "HF_HUB_OFFLINE": "1"}, "{home}/hub", "token set, offline"),
        ({"HF_HUB_OFFLINE": "0"}, "{home}/.cache/huggingface/hub", "token not set"),
    ],
)
def test_it_is_said_where_downloads_go_and_with_which_rights(
    environ: dict[str, str], folder: str, told: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    (tmp_path / "token").write_text("secret")
    asked = {name: value.format(home=tmp_path) for name, value in environ.items()}
    check, _ = software.environment(asked)
    assert check.mark is Mark.OK
    assert check.data["folder"] == folder.format(home=tmp_path)
    assert check.text.startswith(f"downloads go to {check.data['folder']}, ")
    assert check.text.endswith(f"; {told}")
    monkeypatch.setattr("os.access", lambda *_: False)
    check, _ = software.environment(asked)
    assert (check.mark, check.fix) == (
        Mark.WARN,
        "export HF_HOME=FOLDER, with a folder of yours",
    )


def test_it_is_said_what_quantised_weights_take_and_where(tmp_path: Path) -> None:
    folder = tmp_path / "kvrt" / "weights"
    for files, says in ((0, "0, 0 B"), (2, "2, 3 KiB; delete it to have the space")):
        for n in range(files):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / str(n)).write_bytes(bytes(1024 * (n + 1)))
        _, check = software.environment({"XDG_CACHE_HOME": str(tmp_path)})
        assert check.mark is Mark.OK
        assert check.text == f"quantised weights are kept in {folder}: {says}"


def test_libraries_are_those_that_are_required_and_not_for_developers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = {"numpy": "2.1.0", "torch": "2.4.1+cpu", "rich": "13.10", "old": "1.9", "older": "1.9"}

    def version(name: str) -> str:
        if name not in there:
            raise importlib.metadata.PackageNotFoundError(name)
        return there[name]

    required = [
        "numpy>=1.26", "torch>=2.4.1", "rich>=13.9", "old (>=1.10)", "gone",
        "pytest; extra == 'test'", "older>=2; extra == 'more'",
        "binding[all]>=12; extra == 'cuda'",
    ]  # fmt: skip
    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setattr("importlib.metadata.requires", lambda name: required)
    found = {c.name: (c.mark, c.text, c.fix) for c in software.libraries() if "." not in c.name}
    assert found == {
        "numpy": (Mark.OK, "numpy 2.1.0", ""),
        "torch": (Mark.OK, "torch 2.4.1+cpu", ""),
        "rich": (Mark.OK, "rich 13.10", ""),
        "old": (
            Mark.BAD, "old 1.9 is older than 1.10 (kvrt needs it)", "pip install 'old>=1.10'",
        ),
        "gone": (Mark.BAD, "gone is not installed (kvrt needs it)", "pip install 'gone'"),
        "older": (
            Mark.WARN, "older 1.9 is older than 2 (only for kvrt[more])",
            "pip install 'kvrt[more]'",
        ),
        "binding": (
            Mark.SKIP, "binding is not installed (only for the cuda backend)",
            "pip install 'kvrt[cuda]'",
        ),
    }  # fmt: skip


def test_a_kvrt_that_is_not_installed_is_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.requires", requires)
    (check,) = software.libraries()
    assert (check.mark, check.fix) == (Mark.BAD, "pip install -e .")


# --- broken plug-ins ---------------------------------------------------------------------------

# Their names come before those of the backends that work, so that "auto" passes over them.
BROKEN = {
    "boom": "raise RuntimeError('no luck')",
    "bye": "import sys; sys.exit(3)",
    "bad": "def (:",
    "ancient": "class backend: name = 'ancient'; spi = 0",
}


@pytest.fixture
def broken_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = ["[kvrt.backends]"]
    for name, source in BROKEN.items():
        (tmp_path / f"kvrt_{name}.py").write_text(source)
        entries.append(f"{name} = kvrt_{name}:backend")
    info = tmp_path / "broken_plugins-0.7.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugins\nVersion: 0.7\n")
    (info / "entry_points.txt").write_text("\n".join(entries))
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.promise("P36")
@pytest.mark.usefixtures("broken_plugins")
def test_broken_plugins_are_shown_and_break_nothing_else(kvrt: Kvrt, plain_model: str) -> None:
    assert kvrt("--help").exit_code == 0
    names = ",".join(["cpu", *BROKEN])
    result = kvrt("doctor", "-v", "--only", names)
    assert result.exit_code == 1
    assert "[x]  boom (broken-plugins 0.7): " in result.stdout
    assert "RuntimeError: no luck" in result.stdout
    assert "Traceback (most recent call last)" in result.stdout
    assert "pip install --upgrade broken-plugins" in result.stdout
    assert "version 0" in result.stdout
    assert "[ok] cpu" in result.stdout
    dummy = ("run", plain_model, "x", "--load-format", "dummy", "-n", "1")
    for name in BROKEN:
        failed = kvrt(*dummy, "--backend", name)
        assert failed.exit_code == 4
        assert f"backend {name!r} of broken-plugins 0.7 cannot be used" in failed.stderr
    auto = kvrt(*dummy)
    assert auto.exit_code == 0
    for name in BROKEN:
        assert f"warning: passing over backend {name}" in auto.stderr


@pytest.mark.usefixtures("broken_plugins")
def test_a_backend_asked_for_alone_is_judged_alone(kvrt: Kvrt) -> None:
    result = kvrt("doctor", "--only", "boom")
    assert result.exit_code == 1
    assert "[x]  cannot be used: boom" in result.stdout
    assert "nothing can run" not in result.stdout, "others were not looked at"
    assert "cpu" not in result.stdout


# --- devices that break a promise --------------------------------------------------------------


def test_memory_that_is_not_there_is_broken_and_stops_no_other_proof(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kvrt_cli.checks.device._physical", lambda device: 0)
    checks = device.prove("cpu", 0)
    memory = next(check for check in checks if check.name == "memory")
    assert memory.mark is Mark.BAD
    assert "were written, but only 0 B are there" in memory.text
    assert "report it to those who made backend 'cpu' of kvrt " in memory.fix
    assert next(checks).mark is Mark.OK
    checks.close()


def test_memory_that_does_not_come_back_is_said_by_what_it_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = iter([0, 64 << 20, 64 << 20])
    monkeypatch.setattr("kvrt_cli.checks.device._physical", lambda device: next(measured))
    checks = device.prove("cpu", 0)
    memory = next(check for check in checks if check.name == "memory")
    assert memory.mark is Mark.BAD
    assert "64 MiB of 64 MiB did not come back (0 chunks)" in memory.text
    assert "by the resident memory of this process" in memory.text
    assert memory.fix.startswith("report it to those who made backend 'cpu'")
    checks.close()


def test_memory_of_a_device_that_others_use_too_is_proved_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What they take meanwhile seems to be kept."""
    monkeypatch.setattr("kvrt_cli.checks.device._in_host_memory", lambda device: False)
    for kept, tries in (([64, 64, 0], 3), ([0], 1), ([64] * 9, device.TRIES)):
        seen = iter([mib << 20 for each in kept for mib in (0, 64, each)])
        monkeypatch.setattr("kvrt_cli.checks.device._physical", lambda _, seen=seen: next(seen))
        checks = device.prove("cpu", 0)
        memory = next(check for check in checks if check.name == "memory")
        assert len(list(seen)) == 3 * (len(kept) - tries)
        if kept[-1]:
            assert (memory.mark, memory.data["kept_bytes"]) == (Mark.BAD, 64 << 20)
            assert "by the free memory of the device" in memory.text
            assert memory.fix.startswith("run it again while no other program uses the device;")
        else:
            assert (memory.mark, memory.data["kept_bytes"]) == (Mark.OK, 0)
        checks.close()


class OverwritesTheFirst(WrappedMemory):
    """A chunk that is mapped beyond the second place zeroes the first."""

    def map(self, span: Span, at: int, chunk: Chunk) -> None:
        super().map(span, at, chunk)
        if at > self.device.info.granularity:
            self.tensor(span, "float32")[: self.device.info.granularity // 4].zero_()


@pytest.mark.parametrize(
    ("memory", "says"),
    [
        (OverwritesTheFirst, "what was written to chunk 0 was not read back"),
        (MapsZeroes, "a chunk lost its bytes when it was mapped elsewhere"),
        (KeepsDestroyedChunks, "did not come back (32 chunks)"),
    ],
)
def test_memory_with_a_fault_is_broken(
    memory: type[WrappedMemory], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty = MutantBackend("faulty", load("cpu"), Mutant("doctor", memory=memory))
    monkeypatch.setattr("kvrt.registry.open_device", lambda name, index: faulty.open(index))
    checks = device.prove("faulty", 0)
    memory_check = next(check for check in checks if check.name == "memory")
    assert memory_check.mark is Mark.BAD
    assert says in memory_check.text
    checks.close()


def test_a_device_that_cannot_be_opened_is_told_of_and_nothing_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(name: str, index: int) -> Device:
        raise DeviceError("no luck", fix="try another")

    monkeypatch.setattr("kvrt.registry.open_device", refuse)
    (check,) = device.prove("cpu", 3)
    assert (check.group, check.name, check.mark) == ("cpu:3", "open", Mark.BAD)
    assert (check.text, check.fix) == ("open: DeviceError: no luck", "try another")


def test_a_note_of_a_device_is_to_be_mended_if_it_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = load("cpu").open()
    noted = SimpleNamespace(
        info=replace(opened.info, notes=("it is slow; fix: buy another", "it is old")),
        memory=opened.memory, extension=lambda _: None, close=opened.close,
    )  # fmt: skip
    monkeypatch.setattr("kvrt.registry.open_device", lambda name, index: noted)
    found = {check.name: check for check in device.prove("cpu", 0)}
    assert (found["note.0"].mark, found["note.0"].fix) == (Mark.WARN, "buy another")
    assert found["note.0"].text == "it is slow"
    assert (found["note.1"].mark, found["note.1"].fix) == (Mark.SKIP, "")
    assert found["bandwidth"].mark is Mark.SKIP
    free = found["budget"].data["free_bytes"]
    assert found["budget"].data["budget_bytes"] == int(0.6 * free)
    assert found["attention.float32"].mark is Mark.BAD, "it has none, and the rest goes on"
    assert "AttributeError" in found["attention.float32"].text
    assert found["latency"].mark is Mark.OK


def test_wrong_attention_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = reference.attention
    monkeypatch.setattr(reference, "attention", lambda *args: exact(*args) + 0.5)
    checks = device.prove("cpu", 0)
    attention = next(check for check in checks if check.name == "attention.float32")
    assert attention.mark is Mark.BAD
    assert "attention over float32 KV is wrong" in attention.text
    assert "backend 'cpu' of kvrt " in attention.fix
    assert "expected" in attention.details
    checks.close()


def test_a_check_that_raises_is_a_finding_with_its_fix() -> None:
    def checks() -> Any:
        yield Check("group", "first", Mark.OK, "fine")
        raise DeviceError("mremap failed", fix="sudo make it work")

    first, second = contained("group", checks, seconds=5)
    assert first.mark is Mark.OK
    assert second.mark is Mark.BAD
    assert "DeviceError: mremap failed" in second.text
    assert second.fix == "sudo make it work"
    assert "Traceback" in second.details


def test_a_check_that_hangs_is_given_up() -> None:
    def checks() -> Any:
        yield Check("group", "first", Mark.OK, "fine")
        threading.Event().wait()

    _, second = contained("group", checks, seconds=1)
    assert second.mark is Mark.BAD
    assert "hangs" in second.text


# --- machines of other kinds, as copies of /proc and /sys ----------------------------------------


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
