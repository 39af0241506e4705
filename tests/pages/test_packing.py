"""Pages that move together: what comes free, what stays, and that everybody finds their own."""

import pytest

from kvrt.kv.pages.ops import Copy
from kvrt.kv.pages.packing import can_pack, pack
from kvrt.kv.pages.table import PageTable
from kvrt.spi import Device

from .model import Model
from .shapes import KINDS, SIZE, chunks_for, done, empty

EIGHT = "many in a chunk"
"""Pages of 8 KiB in chunks of 64."""


LEFT = (0, 4, 8, 12, 16)


def scattered() -> PageTable:
    """Of twenty sequences of three pages each, every fourth is left: one in a chunk."""
    table = done(empty(EIGHT, limit=24).grow(dict.fromkeys(range(20), 3 * SIZE)))
    for seq in {*range(20)} - {*LEFT}:
        table = done(table.free(seq))
    return table


def needed(table: PageTable) -> int:
    return table.mapped_chunks - table.warm_chunks


def test_what_few_sequences_keep_of_many_chunks_moves_into_as_many_as_it_fills() -> None:
    table = scattered()
    assert (table.used_pages, needed(table)) == (15, 5)
    assert can_pack(table, 3)
    packed = done(pack(table, 3))
    assert needed(packed) == 2 == packed.packed_chunks
    assert [packed.length(seq) for seq in LEFT] == [3 * SIZE] * 5


def test_more_than_is_too_much_does_not_move() -> None:
    table = scattered()
    change = pack(table, 1)
    assert needed(done(change)) == 4
    assert len(change.ops) == 3, "of one chunk"


def test_the_chunk_with_the_fewest_pages_is_emptied_first() -> None:
    table = scattered()
    table = done(table.truncate(12, SIZE))
    assert [op.src_page for op in pack(table, 1).ops if isinstance(op, Copy)] == [*table.pages(12)]


def test_as_many_chunks_as_can_be_are_emptied_and_none_more() -> None:
    table = scattered()
    assert not can_pack(table, 4)
    assert needed(done(pack(table, 4))) == 2


def test_what_has_room_nowhere_stays() -> None:
    table = done(empty(EIGHT).grow({"a": 15 * SIZE}))
    change = pack(table, 1)
    assert (change.table, change.ops, change.moved) == (table, (), ())


def test_pages_that_a_step_may_read_stay_until_it_has_ended() -> None:
    table = done(empty(EIGHT).grow({"a": 7 * SIZE, "b": 2 * SIZE}))
    table = done(done(table.truncate("a", 2 * SIZE)).free("b", after=3))
    assert not can_pack(table, 1)
    table = done(done(table.reclaim(3)).grow({"c": 6 * SIZE}))
    table = done(table.truncate("a", 0))
    assert can_pack(table, 1)


def test_pages_of_sequences_that_are_still_stay() -> None:
    table = scattered()
    assert can_pack(table, 3, still=[4])
    assert not can_pack(table, 3, still=[4, 8])
    packed = done(pack(table, 3, still=[4, 8]))
    assert [packed.pages(seq) for seq in (4, 8)] == [table.pages(seq) for seq in (4, 8)]
    assert needed(packed) == 3


def test_rows_that_nothing_moves_in_are_the_same_arrays() -> None:
    table = scattered()
    packed = done(pack(table, 3))
    assert [seq for seq in LEFT if packed.rows[seq] is table.rows[seq]] == [0, 16]


def test_shared_and_cached_pages_are_copied_once_and_stay_shared() -> None:
    table = scattered()
    table = done(table.fork(8, "again"))
    table = done(table.name((table.pages(8)[:2],)))
    change = pack(table, 3)
    packed = done(change)
    assert packed.pages(8) == packed.pages("again") != table.pages(8)
    assert len([op for op in change.ops if isinstance(op, Copy)]) == len(change.moved[0])
    assert packed.lanes[0].holders.named == sorted(packed.pages(8)[:2])


def test_a_change_in_which_pages_move_stands_alone() -> None:
    table = scattered()
    moved = pack(table, 1)
    with pytest.raises(ValueError, match="pages move in a change of their own"):
        moved.then(moved.table.free(0))
    with pytest.raises(ValueError, match="pages move in a change of their own"):
        (freed := table.free(0)).then(pack(freed.table, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_move_with_their_pages(kind: str, cpu_device: Device) -> None:
    chunk = cpu_device.info.granularity
    limit = chunks_for(kind, 40, chunk_bytes=chunk)
    model = Model(cpu_device, kind, chunks=64, limit=limit, keep_warm=0)
    for _ in range(10):
        model.add(4 * SIZE)
    for seq in sorted(model.oracle.tokens):
        model.name(seq, seq % 3)
        if seq % 3:
            model.free(seq, fenced=False)
    copies = model.cache.stats().copies
    model.pack(limit, [])
    model.check(every_byte=True)
    model.check_poison()
    small = any(lane.geometry.page_bytes < chunk for lane in model.table.lanes)
    assert (model.cache.stats().copies > copies) == small, "else a page has chunks for itself"
    model.close()
