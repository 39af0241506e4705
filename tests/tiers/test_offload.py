"""The offload scheduler over host memory that is small, and a disk that fails."""

import errno
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kvrt.executor.local import LocalPages
from kvrt.kv.index.cost import MoveCost
from kvrt.kv.offload import Offload
from kvrt.kv.pages.ops import Map
from kvrt.kv.seq import Seq
from kvrt.kv.tiers.blockfile import BLOCK
from kvrt.kv.tiers.disk import DiskStore
from kvrt.kv.tiers.host import HostStore
from kvrt.kv.tiers.pagefile import PageFile
from kvrt.registry import open_device
from kvrt.spi import Device, KVLayout

from .pages import FORM, PAGE_BYTES, PAGE_SIZE, Faults, body, names

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
    assert layout.page_bytes == PAGE_BYTES
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
    host = HostStore(pages, [PAGE_BYTES], SLOTS * (PAGE_BYTES + BLOCK))
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
    host = HostStore(pages, [PAGE_BYTES], SLOTS * (PAGE_BYTES + BLOCK))
    offload = Offload(pages, host, MoveCost("auto"), None, is_tier=True)
    offload.save([(name, 1) for name in NAMES])
    stats = offload.stats()
    assert (stats.saved_pages, stats.dropped_pages) == (len(NAMES), 0)
    assert host.names() == NAMES[-len(host) :]
    offload.close()


def test_the_oldest_pages_are_on_disk_before_host_memory_is_full(
    tmp_path: Path, pages: LocalPages
) -> None:
    """An eighth of the slots are free, or hold what the disk has too."""
    disk = DiskStore(PageFile.open(tmp_path, FORM))
    host = HostStore(pages, [PAGE_BYTES], 16 * (PAGE_BYTES + BLOCK))
    offload = Offload(pages, host, MoveCost("auto"), disk, is_tier=True)
    most = host.capacity // PAGE_BYTES
    found = []
    for name in (many := names(most)):
        offload.save([(name, 1)])
        while offload.busy:
            offload.poll()
        found.append(len(disk.names()))
    assert most // 8 > 1
    assert found == [max(0, most // 8 - (most - n)) for n in range(1, most + 1)]
    assert disk.names() == many[: most // 8]
    assert len(host) == most
    offload.close()


def test_fetches_cost_the_time_that_the_engine_spends_on_them(
    pages: LocalPages, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    class Told(MoveCost):
        def fetched(self, nbytes: int, seconds: float) -> None:
            told.append((nbytes / PAGE_BYTES, seconds))

    host = HostStore(pages, [PAGE_BYTES], SLOTS * (PAGE_BYTES + BLOCK))
    offload = Offload(pages, host, Told("auto"), None, is_tier=True)
    offload.save([(name, 1) for name in NAMES[:SLOTS]])
    clock = itertools.count()
    monkeypatch.setattr("kvrt.kv.offload.time.perf_counter", lambda: float(next(clock)))
    for seqs in ([3], [1, 2]):
        for count in seqs:
            seq = Seq(count, [], 0, 99)
            offload.fetch(seq, NAMES[:count], [1] * count)
        for _ in range(3):  # nothing is left to do after the first, and that costs nothing
            offload.poll()
    assert told == [(3, 1.0), (1 + 2, 1.0)]
    assert (offload.stats().fetched_pages, offload.stats().missed_pages) == (6, 0)
    offload.fetch(Seq(9, [], 0, 99), [NAMES[0], NAMES[-1], NAMES[1]], [1, 2, 3])
    offload.wait()
    assert [lost for _, lost in offload.poll()] == [[(0, 2), (0, 3)]]
    assert told[-1] == (1, 2.0), "the wait is the engine's time, too"
    assert (offload.stats().fetched_pages, offload.stats().missed_pages) == (7, 2)
    offload.close()


@pytest.mark.promise("P20")
@pytest.mark.parametrize("gone", [1, 6])
def test_what_is_forgotten_while_it_comes_takes_nothing_before_it_along(
    tmp_path: Path, pages: LocalPages, gone: int
) -> None:
    """Host memory has not room for all at once, so that some of it has not begun to come."""
    names_there, into = NAMES[:7], [*range(1, 8)]
    file = PageFile.open(tmp_path, FORM)
    for name in names_there:
        file.write(name, body(name))
    host = HostStore(pages, [PAGE_BYTES], 2 * PAGE_BYTES + BLOCK)
    offload = Offload(pages, host, MoveCost("auto"), DiskStore(file), is_tier=True)
    for page in into:
        pages.page(page).fill_(0xFF)
    seq = Seq(1, [], 0, 99)
    offload.fetch(seq, names_there, into)
    offload.remove({names_there[gone].page})
    while not (ended := offload.poll()):
        offload.wait()
    assert ended == [(seq, [(0, page) for page in into[gone:]])]
    for name, page in zip(names_there[:gone], into, strict=False):
        assert (pages.page(page).numpy() == body(name)).all()
    offload.close()
