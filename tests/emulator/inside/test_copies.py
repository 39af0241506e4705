"""Copies and tickets on an emulated driver that runs work only when somebody waits for it."""

import importlib
import re

import pytest
import torch

from kvrt.errors import DeviceError
from kvrt.spi import Device
from tests.emulator.inside.conftest import MIB, Open
from tests.emulator.inside.names import CALLS, COPIES, INVALID, LAUNCH_FAILED
from tests.emulator.library import Emulator


@pytest.fixture(autouse=True)
def _deferred(emulator: Emulator) -> None:
    emulator.set(deferred=1)


def bytes_of(value: int, count: int = 4096) -> torch.Tensor:
    return torch.full((count,), value, dtype=torch.uint8)


def compute(device: Device, tensor: torch.Tensor, value: int) -> None:
    """Queue work on the stream that compute uses, as a kernel would be."""
    module = importlib.import_module(f"kvrt_{device.info.backend}.calls")
    kind, fill = {
        "cuda": ("CudaCalls", "cuMemsetD8Async"),
        "rocm": ("RocmCalls", "hipMemsetAsync"),
    }[device.info.backend]
    calls = getattr(module, kind)(device.info.index)
    calls.here(module.call, fill, tensor.data_ptr(), value, tensor.nbytes, 0)
    calls.close()


def test_a_copy_runs_when_it_is_waited_for(open_device: Open) -> None:
    device = open_device()
    there, back = bytes_of(0), device.copier.host_buffer(4096)
    ticket = device.copier.to_device(there, bytes_of(3))
    assert (there == 0).all(), "the stream ran too early for this test to mean anything"
    assert device.copier.to_host(back, there, ticket).wait()
    assert (back == 3).all()


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_says_which_way_it_goes(
    way: str, open_device: Open, emulator: Emulator, vendor: str
) -> None:
    """Emulated memory is the host's, so bytes arrive whatever is said; a GPU's may not."""
    copier = open_device().copier
    assert getattr(copier, way)(bytes_of(0), bytes_of(1)).wait()
    copies = [line for line in emulator.trace() if "emcpy" in line]
    assert len(copies) == 1
    assert re.match(COPIES[way][vendor], copies[0]), copies


def test_a_copy_after_a_fence_waits_for_compute(open_device: Open) -> None:
    device = open_device()
    there, back = bytes_of(0), device.copier.host_buffer(4096)
    compute(device, there, 9)
    assert device.copier.to_host(back, there, device.fence()).wait()
    assert (back == 9).all()


def test_without_its_fence_the_copy_would_be_too_early(
    open_device: Open, emulator: Emulator, vendor: str
) -> None:
    """The wait is what does it: when the call is made to do nothing, old bytes are copied."""
    device = open_device()
    there, back = bytes_of(0), device.copier.host_buffer(4096)
    compute(device, there, 9)
    fence = device.fence()
    emulator.fail(1, INVALID, CALLS["wait"][vendor])
    with pytest.raises(DeviceError, match=CALLS["wait"][vendor]):
        device.copier.to_host(back, there, fence)
    device.copier.to_host(back, there).wait()
    assert (back == 0).all()
    device.synchronize()


def test_a_copy_waits_for_another_devices_ticket_without_the_host(
    emulator: Emulator, open_device: Open, vendor: str
) -> None:
    emulator.set(devices=2)
    first, second = open_device(0), open_device(1)
    there, back = bytes_of(0), bytes_of(0)
    ticket = first.copier.to_device(there, bytes_of(4))
    copied = second.copier.to_host(back, there, ticket)
    assert emulator.calls(CALLS["wait"][vendor]) == 1
    assert (there == 0).all()
    assert copied.wait()
    assert (back == 4).all()


def test_polling_alone_gets_there(open_device: Open) -> None:
    device = open_device()
    there = bytes_of(0)
    ticket = device.copier.to_device(there, bytes_of(1))
    asked = sum(1 for _ in iter(ticket.done, True))
    assert asked > 0
    assert (there == 1).all()


def test_waiting_with_a_timeout_polls(open_device: Open) -> None:
    device = open_device()
    there = bytes_of(0)
    ticket = device.copier.to_device(there, bytes_of(1))
    assert not ticket.wait(0)
    assert ticket.wait(10)
    assert (there == 1).all()


def test_tensors_live_until_their_copy_is_done(open_device: Open) -> None:
    device = open_device()
    there = bytes_of(0, MIB)
    device.copier.to_device(there, bytes_of(6, MIB))  # nobody holds the source, or the ticket
    torch.full((MIB,), 7, dtype=torch.uint8)
    device.synchronize()
    assert (there == 6).all()


def test_events_are_used_again(open_device: Open, emulator: Emulator, vendor: str) -> None:
    device = open_device()
    for _ in range(100):
        assert device.fence().wait()
        assert device.copier.within(bytes_of(0), bytes_of(1)).wait()
    assert emulator.calls(CALLS["event"][vendor]) <= 4


def test_a_fence_that_fails_makes_no_ticket(
    open_device: Open, emulator: Emulator, vendor: str
) -> None:
    device = open_device()
    for call in ("event", "record"):
        emulator.fail(1, INVALID, CALLS[call][vendor])
        with pytest.raises(DeviceError, match=CALLS[call][vendor]):
            device.fence()
    assert device.fence().wait()


def test_a_copy_that_cannot_be_awaited_has_ended_when_its_error_comes(
    open_device: Open, emulator: Emulator, vendor: str
) -> None:
    device = open_device()
    there = bytes_of(0)
    emulator.fail(1, INVALID, CALLS["record"][vendor])
    with pytest.raises(DeviceError):
        device.copier.to_device(there, bytes_of(1))
    assert emulator.count("queued") == 0, "the caller may take its tensors away"


def test_a_ticket_tells_that_the_device_was_lost(open_device: Open, emulator: Emulator) -> None:
    device = open_device()
    ticket = device.copier.to_device(bytes_of(0), bytes_of(1))
    emulator.lose(LAUNCH_FAILED)
    for ask in (ticket.done, ticket.wait, lambda: ticket.wait(1)):
        with pytest.raises(DeviceError, match=r"LAUNCH_FAILED|LaunchFailure"):
            ask()
    emulator.lose(0)


def test_tickets_outlive_their_device(open_device: Open) -> None:
    device, other = open_device(), open_device()
    ticket, fence = device.copier.to_device(bytes_of(0), bytes_of(1)), device.fence()
    device.close()
    assert ticket.done()
    assert fence.wait()
    assert other.copier.within(bytes_of(0), bytes_of(1), after=fence).wait()


# --- pinned memory -------------------------------------------------------------------------------


def test_host_memory_outlives_its_device_and_is_then_given_back(
    open_device: Open, emulator: Emulator
) -> None:
    device = open_device()
    buffer = device.copier.host_buffer(MIB)
    device.close()
    buffer.fill_(1)
    assert emulator.count("pinned") == 1
    del buffer
    assert emulator.left() == {}


def test_host_memory_is_given_back_when_the_next_is_asked_for(
    open_device: Open, emulator: Emulator
) -> None:
    device = open_device()
    for size in (1, 1000, MIB):
        device.copier.host_buffer(size).fill_(1)
    assert emulator.count("pinned") == 1


def test_host_memory_that_cannot_be_given_back_is_tried_again(
    open_device: Open, emulator: Emulator, vendor: str
) -> None:
    device = open_device()
    device.copier.host_buffer(64)
    emulator.fail(1, INVALID, CALLS["unpin"][vendor])
    with pytest.raises(DeviceError, match=CALLS["unpin"][vendor]):
        device.copier.host_buffer(64)
    assert device.copier.host_buffer(64).shape == (64,)
