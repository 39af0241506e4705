"""What `kvrt doctor` says of devices that break a promise, and of checks that fail."""

import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from kvrt_cli.checks import device
from kvrt_cli.checks.check import Check, Mark, contained
from kvrt_cli.main import cli

from kvrt.errors import DeviceError
from kvrt.registry import load
from kvrt.spi import Chunk, Device, Span
from kvrt.testing import reference
from kvrt.testing.mutants import MutantBackend
from kvrt.testing.mutants.memory import KeepsDestroyedChunks, MapsZeroes
from kvrt.testing.mutants.mutant import Mutant
from kvrt.wrappers.parts import WrappedMemory


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
    assert "--timeout" in second.fix


def test_it_is_said_after_how_long_one_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvrt_cli.checks.system.system", lambda: iter(threading.Event().wait, 0))
    done = CliRunner().invoke(cli, ["doctor", "--only", "system", "--timeout", "1.5"])
    assert done.exit_code == 1
    assert "no answer within 1.5 s" in done.output
