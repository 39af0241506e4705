"""What goes wrong is said with a typed error, and leaves everything as it was."""

import pytest
import torch

from kvrt.errors import BackendUnavailable, DeviceError, OutOfMemory
from kvrt.spi import Chunk, Device
from kvrt.testing.subject import Subject
from kvrt.wrappers import Checked

EXHAUSTIBLE = 2**30


@pytest.mark.parametrize("index", [10**6, 2**40])
def test_a_device_that_does_not_exist_is_not_opened(subject: Subject, index: int) -> None:
    with pytest.raises(BackendUnavailable, match=str(index)):
        subject.backend.open(index)


def test_the_index_after_the_last_device_is_not_opened(subject: Subject) -> None:
    with pytest.raises(BackendUnavailable):
        subject.backend.open(subject.backend.probe().devices)


def test_more_addresses_than_there_are_cannot_be_reserved(device: Device) -> None:
    before = device.memory.info().chunks
    with pytest.raises((OutOfMemory, DeviceError)) as raised:
        device.memory.reserve(2**62)
    assert str(raised.value)
    assert device.memory.info().chunks == before
    device.memory.release(device.memory.reserve(device.info.granularity))


def test_running_out_of_memory_changes_nothing(opened: Device) -> None:
    """Take all there is, where that is little enough to take."""
    if opened.memory.info().free > EXHAUSTIBLE:
        pytest.skip(f"the device has more than {EXHAUSTIBLE // 2**20} MiB to fill")
    device = Checked(opened)
    granularity = device.info.granularity
    span = device.memory.reserve(granularity)
    first = device.memory.create()
    device.memory.map(span, 0, first)
    device.memory.tensor(span, "float32").fill_(3.0)
    # Looked at from the host: torch may need the device's memory to compare.
    seen = device.copier.host_buffer(granularity)
    chunks: list[Chunk] = []
    with pytest.raises(OutOfMemory):
        take_all(device, chunks)
    assert device.memory.info().chunks == (1 + len(chunks)) * granularity
    with pytest.raises(OutOfMemory):
        device.memory.create()
    assert device.memory.info().chunks == (1 + len(chunks)) * granularity
    assert device.copier.to_host(seen, device.memory.tensor(span, "float32"), device.fence()).wait()
    assert (seen.view(torch.float32) == 3).all()
    device.memory.destroy(chunks.pop())
    chunks.append(device.memory.create())
    for chunk in chunks:
        device.memory.destroy(chunk)
    assert device.memory.info().chunks == granularity


def take_all(device: Device, chunks: list[Chunk]) -> None:
    while True:
        chunks.append(device.memory.create())
