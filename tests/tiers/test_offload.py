"""The offload scheduler over host memory that is small, and a disk that fails."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kvrt.kv.index.cost import MoveCost
from kvrt.kv.offload import Offload
from kvrt.kv.tiers.blockfile import BLOCK
from kvrt.kv.tiers.disk import DiskStore
from kvrt.kv.tiers.host import HostStore
from kvrt.kv.tiers.pagefile import PageFile
from kvrt.registry import open_device
from kvrt.spi import Device

from .pages import FORM, Faults, body, names

NAMES = names(20)
SLOTS = 5


class Pages:
    """What `Offload` needs of a cache: the bytes of a page on the device."""

    def __init__(self, device: Device) -> None:
        memory, size = device.memory, device.info.granularity
        span, chunk = memory.reserve(size), memory.create()
        memory.map(span, 0, chunk)
        self._bytes = memory.tensor(span, "float32").view(torch.uint8)

    def page(self, number: int) -> torch.Tensor:
        return self._bytes[number * FORM.page_bytes : (number + 1) * FORM.page_bytes]


@pytest.fixture
def device() -> Iterator[Device]:
    device = open_device("null")
    yield device
    device.close()


@pytest.mark.promise("P22")
@pytest.mark.timeout(30)
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
def test_pages_that_no_disk_takes_make_room_in_host_memory(
    tmp_path: Path, device: Device, error: int
) -> None:
    faults = Faults(error=error)
    disk = DiskStore(PageFile.open(tmp_path, FORM, open_file=faults))
    faults.at, faults.lasting = faults.calls, True
    host = HostStore(device.copier, FORM.page_bytes, SLOTS * (FORM.page_bytes + BLOCK))
    cache = Pages(device)
    offload = Offload(device, cache, host, MoveCost("auto"), disk, is_tier=True)  # type: ignore
    for name in NAMES:
        cache.page(1).copy_(torch.from_numpy(body(name).copy()))
        offload.save([(name, 1)])
    assert offload.stats().saved_pages == len(NAMES)
    assert host.names() == NAMES[-len(host) :]
    assert len(host) > 1
    for name in host.names():
        page = host.find(name)
        assert page is not None
        assert (page.data.numpy() == body(name)).all()
    offload.close()


def test_more_pages_than_host_memory_holds_are_saved_at_once(device: Device) -> None:
    """Copies on their way take all slots; the next page waits for them and is not lost."""
    host = HostStore(device.copier, FORM.page_bytes, SLOTS * (FORM.page_bytes + BLOCK))
    offload = Offload(device, Pages(device), host, MoveCost("auto"), None, is_tier=True)  # type: ignore
    offload.save([(name, 1) for name in NAMES])
    stats = offload.stats()
    assert (stats.saved_pages, stats.dropped_pages) == (len(NAMES), 0)
    assert host.names() == NAMES[-len(host) :]
    offload.close()
