"""Groups of layers share the chunks and the limit, and nothing else."""

from dataclasses import replace

import pytest

from kvrt.kv.pages.group import Group
from kvrt.kv.pages.integrity import check_table
from kvrt.kv.pages.lanes import Placers, Shortage
from kvrt.kv.pages.ops import Copy, Map, Move, Scrub, Unmap
from kvrt.kv.pages.table import Change, PageTable

from .shapes import CHUNK, SIZE, done, shape

TWO = [Group(shape("one chunk", chunks=64)), Group(shape("many in a chunk", chunks=64))]


def table_of(limit: int, *, scrub: bool = False) -> PageTable:
    return PageTable.empty(TWO, limit, scrub=scrub).table


def test_every_group_gets_its_pages_and_the_ops_say_whose_they_are() -> None:
    change = table_of(20).grow({"a": 8 * SIZE})
    table = done(change)
    assert isinstance(change, Change)
    assert change.ops == (*(Map(chunk, 0) for chunk in range(1, 9)), Map(1, 1))
    assert (len(table.pages("a", 0)), len(table.pages("a", 1))) == (8, 8)
    assert table.mapped_chunks == 9 + 2
    forked = done(done(table.grow({"a": 1})).fork("a", "b"))
    change = forked.grow({"b": 1})
    assert isinstance(change, Change)
    copies = [op for op in change.ops if isinstance(op, Copy)]
    assert copies == [
        Copy(forked.pages("b", group)[-1], done(change).pages("b", group)[-1], group)
        for group in range(2)
    ]


def test_what_becomes_free_is_scrubbed_and_what_moves_moves_in_every_group() -> None:
    table = done(table_of(20, scrub=True).grow({"a": 2 * SIZE}))
    rows = [table.pages("a", group) for group in range(2)]
    moves = table.pick("a", 1, [5]).ops[:2]
    assert moves == tuple(Move(row[1], 1, row[0], 1, group) for group, row in enumerate(rows))
    scrubs = tuple(Scrub(page, group) for group, row in enumerate(rows) for page in row)
    assert table.free("a").ops == scrubs
    assert table.free("a", after=3).table.reclaim(3).ops == scrubs


def test_the_limit_is_over_all_groups() -> None:
    table = table_of(9)
    assert table.free_pages == 7
    table = done(table.grow({"a": 7 * SIZE}))
    assert table.mapped_chunks == 9
    assert table.grow({"a": 1}) == Shortage(needed=1, free=0)
    assert done(table.with_limit(11).grow({"a": 1})).mapped_chunks == 11


@pytest.mark.parametrize("limit", [4, 9, 30, 72])
@pytest.mark.parametrize("tokens", [0, 5, 40])
def test_the_bytes_that_are_free_are_nearly_those_that_can_be_had(limit: int, tokens: int) -> None:
    table = table_of(limit)
    grown = table.grow({"a": tokens})
    table = grown.table if isinstance(grown, Change) else table
    pages = 0
    while isinstance(table.grow({"b": (pages + 1) * SIZE}), Change):
        pages += 1
    found = table.free_bytes
    assert pages * table.page_bytes <= found + CHUNK
    assert found <= (pages + 1) * table.page_bytes + CHUNK
    assert table.free_pages in (pages, pages + 1)


def test_what_one_group_has_to_spare_another_gets() -> None:
    table = done(done(table_of(9).grow({"a": 6 * SIZE})).free("a"))
    assert (table.mapped_chunks, table.warm_chunks) == (8, 6)
    placers = Placers(table.lanes, table.limit)
    assert len(placers.take(1, 7 + 4 * 8)) == 7 + 4 * 8
    assert placers.ops == [
        Map(1, 1),
        *(op for n in range(3) for op in (Unmap(6 - n, 0), Map(2 + n, 1))),
    ]
    assert len(placers.take(1, 4 * 8)) == 3 * 8, "the null page of the other stays"
    assert placers.take(0, 1) == []


def test_what_is_kept_warm_is_counted_over_all_groups() -> None:
    table = done(done(table_of(40).grow({"a": 20 * SIZE})).free("a"))
    assert table.warm_chunks == 20 + 2
    for keep in (22, 21, 7, 0):
        assert done(table.trim(keep)).warm_chunks == keep
    assert done(table.with_limit(5).trim(22)).mapped_chunks == 5


def test_a_shortage_in_any_group_leaves_the_table_as_it_is() -> None:
    table = done(table_of(10).grow({"a": 7 * SIZE}))
    before = table.lanes
    assert table.grow({"a": SIZE}) == Shortage(needed=1, free=0, group=1), (
        "one chunk is left of two"
    )
    assert table.lanes is before
    check_table(table)


def test_groups_whose_pages_hold_other_numbers_of_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in the tokens of a page"):
        PageTable.empty([TWO[0], Group(replace(TWO[1].geometry, page_size=SIZE + 1))], 9)
    with pytest.raises(ValueError, match="no room for the null pages"):
        PageTable.empty(TWO, 1)
