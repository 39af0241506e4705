"""Which page is handed out, which chunk is mapped for it, and what the limit does."""

from dataclasses import replace

import pytest

from kvrt.kv.pages.group import Group
from kvrt.kv.pages.lanes import Shortage
from kvrt.kv.pages.ops import Map, Unmap
from kvrt.kv.pages.table import Change, PageTable

from .shapes import CHUNK, LAYERS, SIZE, done, empty, shape

# --- which page ------------------------------------------------------------------------------


def test_new_pages_come_from_the_fullest_chunk_so_that_others_empty() -> None:
    table = empty("many in a chunk")
    table = done(table.grow({"null chunk": 7 * SIZE, "a": 8 * SIZE, "b": 5 * SIZE, "c": 3 * SIZE}))
    table = done(table.truncate("a", 6 * SIZE))  # chunk 1 has 6 used pages, chunk 2 has 8
    table = done(table.free("b"))  # and now 3
    assert {c for p in table.pages("c") for c in table.lanes[0].geometry.chunks_of(p)} == {2}
    grown = done(table.grow({"d": 2 * SIZE}))
    assert {c for p in grown.pages("d") for c in table.lanes[0].geometry.chunks_of(p)} == {1}
    assert done(done(table.free("c")).trim()).mapped_chunks == 2


def test_a_page_across_two_chunks_is_used_when_both_are_mapped() -> None:
    table = empty("straddling")  # pages of 40 KiB over chunks of 64 KiB: 1 lies across 0 and 1
    assert table.lanes[0].placement.open_pages == 0
    change = table.grow({"a": SIZE})
    table = done(change)
    assert isinstance(change, Change)
    assert change.ops == (Map(1),)
    assert table.pages("a") == (1,)
    assert table.lanes[0].placement.open_pages == 1, (
        "page 2 lies wholly within chunk 1; 3 reaches into 2"
    )
    change = table.grow({"b": 2 * SIZE})
    assert isinstance(change, Change)
    assert change.ops == (Map(2),)
    assert done(change).pages("b") == (2, 3)


def test_a_chunk_is_unmapped_only_when_no_page_reaches_into_it() -> None:
    table = done(empty("straddling").grow({"a": SIZE, "b": 2 * SIZE}))
    table = done(table.free("b"))
    change = table.trim()
    assert change.ops == (Unmap(2),), "chunk 1 holds the end of page 1"
    table = done(change)
    assert done(done(table.free("a")).trim()).mapped_chunks == 1


def test_a_page_larger_than_a_chunk_maps_all_of_its_chunks() -> None:
    table = empty("larger", limit=16)  # 160 KiB over chunks of 64 KiB: page 1 begins in chunk 2
    change = table.grow({"a": SIZE})
    table = done(change)
    assert isinstance(change, Change)
    assert change.ops == (Map(3), Map(4))
    change = done(table.free("a")).trim()
    assert change.ops == (Unmap(4), Unmap(3)), "chunk 2 holds the end of the null page"


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_a_full_span_is_used_to_the_last_page(kind: str) -> None:
    geometry = shape(kind)
    table = PageTable.empty([Group(geometry)], geometry.chunks).table
    count = table.free_pages
    assert count == geometry.pages - 1
    table = done(table.grow({"a": count * SIZE}))
    assert table.free_pages == 0
    assert table.grow({"b": 1}) == Shortage(needed=1, free=0)
    assert sorted(table.pages("a")) == list(range(1, geometry.pages))


# --- the limit -------------------------------------------------------------------------------


@pytest.mark.promise("P3")
@pytest.mark.parametrize("kind", sorted(LAYERS))
@pytest.mark.parametrize("limit", [6, 7, 11])
def test_out_of_pages_is_a_value_and_nothing_is_taken(kind: str, limit: int) -> None:
    geometry = shape(kind)
    table = PageTable.empty([Group(geometry)], limit).table
    room = geometry.pages_in(limit) - 1
    table = done(table.grow({"a": (room - 1) * SIZE}))
    before = replace(table)
    assert table.grow({"b": SIZE, "c": 1, "a": 1}) == Shortage(needed=3, free=1)
    assert table == before
    table = done(table.grow({"b": SIZE}))
    assert table.mapped_chunks <= limit
    assert table.grow({"c": 1}) == Shortage(needed=1, free=0)


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_what_free_pages_promises_can_be_had(kind: str) -> None:
    """Under any limit, in tables full of holes."""
    table = done(empty(kind, limit=24).grow(dict.fromkeys(range(6), SIZE)))
    for seq in (1, 2, 4):
        table = done(table.free(seq))
    table = done(table.trim())
    for limit in range(table.mapped_chunks, 25):
        limited = table.with_limit(limit)
        promised = limited.free_pages
        if promised:
            grown = done(limited.grow({"new": promised * SIZE}))
            assert grown.mapped_chunks <= limit


def test_a_lower_limit_takes_effect_as_pages_come_free() -> None:
    table = done(empty("one chunk").grow({"a": 3 * SIZE, "b": 3 * SIZE}))
    assert table.mapped_chunks == 7
    table = table.with_limit(4)
    assert table.free_pages == 0
    assert done(table.trim(keep_warm=8)) == table, "every chunk is in use"
    some = done(table.truncate("b", SIZE)).with_limit(6)
    assert some.free_pages == 1, "one of the two open pages is beyond the limit"
    assert some.grow({"c": 2 * SIZE}) == Shortage(needed=2, free=1)
    table = done(table.truncate("a", 2 * SIZE))
    assert table.grow({"c": 1}) == Shortage(needed=1, free=0), "it goes back, not to others"
    table = done(done(table.free("b")).trim(keep_warm=8))
    assert table.mapped_chunks == 4
    assert table.free_pages == 1


def test_warm_chunks_of_no_use_are_given_up_for_those_that_are_needed() -> None:
    geometry = replace(shape("one chunk"), page_bytes=3 * CHUNK, pages=9)  # a page has three chunks
    table = done(PageTable.empty([Group(geometry)], 9).table.grow({"a": SIZE, "b": SIZE}))
    table = done(done(table.free("a")).trim())
    table = done(done(table.free("b")).trim(keep_warm=2))  # of page 2, chunks 6 and 7 are left
    change = table.with_limit(6).grow({"c": SIZE})
    table = done(change)
    assert isinstance(change, Change)
    assert table.pages("c") == (1,)
    assert change.ops == (Map(3), Unmap(7), Map(4), Unmap(6), Map(5))
    assert table.mapped_chunks == 6


def test_trim_keeps_as_many_warm_chunks_as_it_is_told() -> None:
    table = done(done(empty("one chunk").grow({"a": 5 * SIZE})).free("a"))
    assert table.warm_chunks == 5
    change = table.trim(keep_warm=2)
    assert change.ops == (Unmap(5), Unmap(4), Unmap(3))
    assert done(change).warm_chunks == 2
    assert done(done(change).trim(keep_warm=2)) == done(change)
