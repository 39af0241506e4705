"""Pages are read ahead for those who wait, as many as there is room for, and for nobody else."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvrt.kv.tiers.ahead import ReadAhead
from kvrt.kv.tiers.blockfile import BLOCK
from kvrt.kv.tiers.disk import DiskStore
from kvrt.kv.tiers.host import HostStore
from kvrt.kv.tiers.pagefile import PageFile
from kvrt.kv.tiers.stores import Stores
from kvrt.spi import Copier

from .pages import FORM, PAGE_BYTES, body, cached, names, opened

NAMES = names(60)
SLOTS = 20


@pytest.fixture
def stores(tmp_path: Path, copier: Copier) -> Iterator[Stores]:
    """All pages are on disk, and a third of them have room in host memory."""
    with opened(tmp_path, open_file=cached) as file:
        for name in NAMES:
            file.write(name, body(name))
    disk = DiskStore(PageFile.open(tmp_path, FORM, open_file=cached))
    host = HostStore(copier, [PAGE_BYTES], SLOTS * PAGE_BYTES + 2 * BLOCK)
    stores = Stores(host, disk, write_at_once=False)
    yield stores
    stores.close()


def carry_on(ahead: ReadAhead) -> None:
    while len(ahead) or ahead.busy:
        ahead.poll()


def test_what_is_wanted_comes_to_host_memory(stores: Stores) -> None:
    ahead = ReadAhead(stores)
    ahead.want("one", NAMES[:5])
    ahead.want("two", NAMES[3:8])
    carry_on(ahead)
    assert set(stores.host.names()) == set(NAMES[:8])
    ahead.want("three", NAMES[:8])
    assert len(ahead) == 0, "it is there"


def test_no_more_is_remembered_than_there_is_room_for(stores: Stores) -> None:
    ahead = ReadAhead(stores)
    for owner in range(5000):
        ahead.want(owner, NAMES)
    assert len(ahead) == SLOTS < len(NAMES)
    carry_on(ahead)
    first = set(NAMES[:SLOTS])
    assert set(stores.host.names()) == first, "the first who came is served first"
    assert stores.host.stats().evicted == 0


def test_what_nobody_wants_any_more_is_not_read(stores: Stores) -> None:
    ahead = ReadAhead(stores)
    ahead.want("stays", NAMES[:4])
    ahead.want("goes", NAMES[4:9])
    ahead.forget("goes")
    ahead.forget("goes")
    ahead.forget("a stranger")
    carry_on(ahead)
    assert set(stores.host.names()) == set(NAMES[:4])
    ahead.want("later", NAMES[10:50])
    assert len(ahead) == SLOTS, "and leaves its room to others"
