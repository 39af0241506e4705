"""The offload scheduler over host memory that is small, and a disk that fails."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kvrt.executor.local import LocalPages
from kvrt.kv.index.cost import MoveCost
from kvrt.kv.offload import Offload
from kvrt.kv.pages.ops import Map
from kvrt.kv.tiers.blockfile import BLOCK
from kvrt.kv.tiers.disk import DiskStore
from kvrt.kv.tiers.host import HostStore
from kvrt.kv.tiers.pagefile import PageFile
from kvrt.registry import open_device
from kvrt.spi import Device, KVLayout

from .pages import FORM, PAGE_SIZE, Faults, body, names

NAMES = names(20)
SLOTS = 5


@pytest.fixture
def device() -> Iterator[Device]:
    device = open_device("null")
    yield device
    device.close()


@pytest.fixture
def pages(device: Device) -> Iterator[LocalPages]:
    """A chunk's worth of them is mapped."""
    layout = KVLayout.packed(
        "float32", layers=1, kv_heads=1, head_dim=1024 // PAGE_SIZE, page_size=PAGE_SIZE
    )
    assert layout.page_bytes == FORM.page_bytes
    pages = LocalPages(device, [layout], 8)
    pages.commit([Map(0)])
    yield pages
    pages.close()


@pytest.mark.promise("P22")
@pytest.mark.timeout(30)
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
def test_pages_that_no_disk_takes_make_room_in_host_memory(
    tmp_path: Path, pages: LocalPages, error: int
) -> None:
    faults = Faults(error=error)
    disk = DiskStore(PageFile.open(tmp_path, FORM, open_file=faults))
    faults.at, faults.lasting = faults.calls, True
    host = HostStore(pages, FORM.page_bytes, SLOTS * (FORM.page_bytes + BLOCK))
    offload = Offload(pages, host, MoveCost("auto"), disk, is_tier=True)
    for name in NAMES:
        pages.page(1).copy_(torch.from_numpy(body(name).copy()))
        offload.save([(name, 1)])
    assert offload.stats().saved_pages == len(NAMES)
    assert host.names() == NAMES[-len(host) :]
    assert len(host) > 1
    for name in host.names():
        page = host.find(name)
        assert page is not None
        assert (page.data.numpy() == body(name)).all()
    offload.close()


def test_more_pages_than_host_memory_holds_are_saved_at_once(pages: LocalPages) -> None:
    """Copies on their way take all slots; the next page waits for them and is not lost."""
    host = HostStore(pages, FORM.page_bytes, SLOTS * (FORM.page_bytes + BLOCK))
    offload = Offload(pages, host, MoveCost("auto"), None, is_tier=True)
    offload.save([(name, 1) for name in NAMES])
    stats = offload.stats()
    assert (stats.saved_pages, stats.dropped_pages) == (len(NAMES), 0)
    assert host.names() == NAMES[-len(host) :]
    offload.close()
