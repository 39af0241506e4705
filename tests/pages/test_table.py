"""The page table as a value: what each operation returns, and in which ops."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kvrt.errors import IntegrityError
from kvrt.kv.pages.group import Group
from kvrt.kv.pages.holders import Holders
from kvrt.kv.pages.integrity import check_table
from kvrt.kv.pages.lanes import Retired, Shortage
from kvrt.kv.pages.ops import Copy, Map, Move, Scrub
from kvrt.kv.pages.table import Change, PageTable

from .shapes import SIZE, done, empty, shape

# --- grow ------------------------------------------------------------------------------------


def test_an_empty_table_maps_only_the_null_page() -> None:
    geometry = shape("larger")
    change = PageTable.empty([Group(geometry)], 8)
    assert change.ops == (Map(0), Map(1), Map(2))
    assert change.table.used_pages == 0
    assert change.table.length("nobody") == 0
    assert change.table.pages("nobody") == ()
    check_table(change.table)


def test_a_table_over_a_huge_span_costs_nothing() -> None:
    geometry = replace(shape(), pages=2**31 - 1)
    table = PageTable.empty([Group(geometry)], geometry.chunks).table
    assert len(table.lanes[0].placement.held) == 1
    assert table.free_pages == geometry.pages - 1
    assert done(table.grow({"a": 1})).pages("a") == (1,)


def test_pages_come_one_for_each_page_size_tokens() -> None:
    table = empty()
    for length in range(1, 20):
        table = done(table.grow({"a": 1}))
        assert table.length("a") == length
        assert len(table.pages("a")) == -(-length // SIZE)
    assert table.used_pages == 5


def test_many_sequences_grow_in_one_change() -> None:
    table = done(empty().grow({"a": 3, "b": 9, "c": 0}))
    assert [table.length(s) for s in "abc"] == [3, 9, 0]
    table = done(table.grow({"a": 1, "c": 5, "d": 4}))
    assert [table.length(s) for s in "abcd"] == [4, 9, 5, 4]
    pages = [page for s in "abcd" for page in table.pages(s)]
    assert len(pages) == len(set(pages)) == 1 + 3 + 2 + 1


def test_chunks_are_mapped_when_a_page_in_them_is_first_used() -> None:
    table = empty("many in a chunk")  # 8 pages in a chunk, one of them the null page
    change = table.grow({"a": 7 * SIZE})
    assert isinstance(change, Change)
    assert change.ops == ()
    change = done(change).grow({"a": 1})
    assert isinstance(change, Change)
    assert change.ops == (Map(1),)


def test_a_negative_number_of_tokens_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'a' cannot grow by -1"):
        empty().grow({"a": -1})


# --- sharing ---------------------------------------------------------------------------------


def test_a_fork_shares_all_pages_and_needs_no_op() -> None:
    table = done(empty().grow({"a": 10}))
    change = table.fork("a", "b")
    assert change.ops == ()
    forked = done(change)
    assert forked.pages("b") == table.pages("a")
    assert forked.used_pages == table.used_pages
    assert forked.own_bytes("a") == forked.own_bytes("b") == 0
    assert done(forked.free("a")).own_bytes("b") == 3 * forked.page_bytes


def test_more_sequences_can_share_a_page_than_two_bytes_count() -> None:
    table = done(empty().grow({0: SIZE}))
    row, sharing = table.row(0), table.lanes[0].holders.evolver()
    for _ in range(1, 1 << 15):
        sharing.add(row)
    rows = dict.fromkeys(range(1 << 15), (row,))
    lane = replace(table.lanes[0], holders=sharing.persistent())
    many = replace(table, rows=rows, lengths=dict.fromkeys(rows, SIZE), lanes=(lane,))
    check_table(done(many.free(0)))


def test_a_named_page_is_copied_before_it_is_written_to() -> None:
    table = done(empty().grow({"a": 3 * SIZE}))
    row = table.pages("a")
    table = done(done(table.name((row[:2],))).truncate("a", SIZE + 1))
    change = table.grow({"a": 1})
    assert isinstance(change, Change)
    assert change.ops == (Copy(row[1], done(change).pages("a")[1]),)
    assert done(change).idle_pages == 1


def test_named_pages_outlast_their_sequences_until_they_are_forgotten() -> None:
    table = done(empty().grow({"a": 3 * SIZE}))
    row = table.pages("a")
    table = done(table.name((row[:2],)))
    assert (table.idle_pages, table.used_pages) == (0, 3)
    cached = done(table.free("a"))
    assert (cached.idle_pages, cached.used_pages) == (2, 0)
    again = done(cached.attach("b", (table.row("a")[:1],)))
    assert (again.pages("b"), again.length("b")) == (row[:1], SIZE)
    assert (again.idle_pages, again.used_pages) == (1, 1)
    change = again.forget((row[:2],))
    assert change.lost() == row[:2]
    assert (done(change).idle_pages, done(change).used_pages) == (0, 1)
    assert done(done(change).free("b")) == done(empty().grow({"a": 0})).free("a").table


def test_a_name_is_given_once_and_to_pages_in_use() -> None:
    table = done(empty().grow({"a": 2 * SIZE}))
    row = table.pages("a")
    named = done(table.name((row[:1],)))
    for pages in (row, (row[1], row[1] + 1)):
        with pytest.raises(ValueError, match="not all in rows, and none is named yet"):
            named.name((pages,))
    with pytest.raises(ValueError, match="not all named"):
        named.forget((row,))


def test_a_shared_last_page_is_copied_by_whoever_writes_first() -> None:
    table = done(done(empty().grow({"a": 10})).fork("a", "b"))
    old = table.pages("a")
    change = table.grow({"a": 1, "b": 1})
    table = done(change)
    assert isinstance(change, Change)
    assert change.ops == (Copy(old[-1], table.pages("a")[-1]),)
    assert table.pages("a")[:-1] == table.pages("b")[:-1] == old[:-1]
    assert table.pages("b") == old, "the last one who holds a page writes in place"


def test_a_full_shared_page_is_not_copied() -> None:
    table = done(done(empty().grow({"a": 8})).fork("a", "b"))
    change = table.grow({"a": 1, "b": 1})
    assert isinstance(change, Change)
    assert change.ops == ()
    assert done(change).pages("a")[1] == done(change).pages("b")[1]


def test_sixteen_forks_write_to_sixteen_pages() -> None:
    table = done(empty().grow({0: 10}))
    for child in range(1, 16):
        table = done(table.fork(0, child))
    change = table.grow(dict.fromkeys(range(16), 1))
    table = done(change)
    assert isinstance(change, Change)
    assert sum(isinstance(op, Copy) for op in change.ops) == 15
    assert len({table.pages(seq)[-1] for seq in range(16)}) == 16
    for seq in range(16):
        table = done(table.free(seq))
    assert table.used_pages == 0
    assert table.lanes[0].holders == Holders.none()


def test_a_cut_sequence_does_not_write_into_what_others_read() -> None:
    table = done(done(empty().grow({"a": 14})).fork("a", "b"))
    table = done(table.truncate("b", 6))
    assert table.pages("b") == table.pages("a")[:2]
    change = table.grow({"b": 1})
    assert isinstance(change, Change)
    assert change.ops == (Copy(table.pages("a")[1], done(change).pages("b")[1]),)


def test_fork_needs_a_parent_and_a_new_name() -> None:
    table = done(empty().grow({"a": 1, "b": 1}))
    with pytest.raises(KeyError, match="nobody"):
        table.fork("nobody", "c")
    with pytest.raises(ValueError, match="'b' is in the page table already"):
        table.fork("a", "b")


# --- giving back -----------------------------------------------------------------------------


def test_freeing_one_of_two_keeps_what_the_other_holds() -> None:
    table = done(done(done(empty().grow({"a": 10})).fork("a", "b")).grow({"b": 9}))
    held = table.pages("b")
    table = done(table.free("a"))
    assert table.pages("b") == held
    assert table.used_pages == len(held)
    assert done(table.free("b")).used_pages == 0


def test_truncate_gives_back_the_pages_behind_the_cut() -> None:
    table = done(empty().grow({"a": 18}))
    row = table.pages("a")
    assert done(table.truncate("a", 9)).pages("a") == row[:3]
    assert done(table.truncate("a", 8)).pages("a") == row[:2]
    assert done(table.truncate("a", 0)).pages("a") == ()
    assert done(table.truncate("a", 18)) == table
    with pytest.raises(ValueError, match="has 18 tokens and cannot be cut to 19"):
        table.truncate("a", 19)
    with pytest.raises(KeyError, match="nobody"):
        table.truncate("nobody", 0)


def test_picked_tokens_move_up_to_the_slots_from_the_start_on() -> None:
    table = done(empty().grow({"a": 18}))
    row = table.pages("a")
    change = table.pick("a", 10, [10, 12, 16])
    assert change.ops == (Move(row[3], 0, row[2], 3), Move(row[4], 0, row[3], 0))
    assert done(change) == done(table.truncate("a", 13))
    assert table.pick("a", 10, [10, 11]) == table.truncate("a", 12), "nothing to move"
    for kept in ([9], [12, 11], [10, 10], [17, 18]):
        with pytest.raises(ValueError, match=r"not ascending from 10 to below 18"):
            table.pick("a", 10, kept)


def test_tokens_do_not_move_into_a_page_that_somebody_else_holds() -> None:
    table = done(done(empty().grow({"a": 10})).fork("a", "b"))
    with pytest.raises(ValueError, match="shares pages from slot 8 on"):
        table.pick("a", 8, [9])
    grown = done(table.grow({"a": 4}))
    assert len(grown.pick("a", 10, [11, 13]).ops) == 2, "its last page is its own now"


def test_a_sequence_cannot_be_freed_twice() -> None:
    table = done(done(empty().grow({"a": 10})).free("a"))
    with pytest.raises(KeyError, match="'a' is not in the page table"):
        table.free("a")


def test_a_freed_page_is_reused_only_after_its_fence() -> None:
    table = done(empty("one chunk", limit=4).grow({"a": 2 * SIZE, "b": SIZE}))
    retired = table.pages("a")
    table = done(table.free("a", after=7))
    assert (table.used_pages, table.retired_pages, table.free_pages) == (1, 2, 0)
    assert table.grow({"c": 1}) == Shortage(needed=1, free=0)
    assert done(table.trim()).mapped_chunks == 4, "nor is its chunk unmapped"
    assert done(table.reclaim(6)) == table
    table = done(table.reclaim(7))
    assert (table.used_pages, table.retired_pages, table.free_pages) == (1, 0, 2)
    assert set(done(table.grow({"c": 2 * SIZE})).pages("c")) == set(retired)


def test_pages_retired_behind_several_steps_come_back_step_by_step() -> None:
    table = done(empty().grow({"a": 20}))
    table = done(table.truncate("a", 8, after=1))
    table = done(table.free("a", after=2))
    assert table.retired_pages == 5
    assert done(table.reclaim(1)).retired_pages == 2
    assert done(table.reclaim(2)).retired_pages == 0


def test_a_page_that_somebody_still_holds_is_not_retired() -> None:
    table = done(done(empty().grow({"a": 10})).fork("a", "b"))
    assert done(table.free("a", after=1)).retired_pages == 0


def test_freed_pages_are_scrubbed_when_they_become_free() -> None:
    table = PageTable.empty([Group(shape())], 8, scrub=True).table
    table = done(table.grow({"a": 8, "b": 8}))
    first, second = (tuple(Scrub(page) for page in table.pages(seq)) for seq in "ab")
    assert table.free("a").ops == first
    retired = table.free("b", after=3)
    assert retired.ops == ()
    assert retired.table.reclaim(3).ops == second


# --- values ----------------------------------------------------------------------------------


def test_every_operation_leaves_the_table_as_it_was() -> None:
    table = done(done(empty("straddling").grow({"a": 10, "b": 5})).fork("a", "c"))
    table = done(table.free("b", after=1))
    rows = {seq: (table.length(seq), table.pages(seq)) for seq in table.sequences}
    placement = replace(table.lanes[0].placement)
    for change in (
        table.grow({"a": 9, "c": 9, "d": 1}),
        table.fork("a", "d"),
        table.truncate("a", 3),
        table.free("c"),
        table.reclaim(1),
        table.trim(),
    ):
        done(change)
        check_table(table)
        assert {seq: (table.length(seq), table.pages(seq)) for seq in table.sequences} == rows
        assert table.lanes[0].placement == placement


def test_the_same_operations_give_the_same_table() -> None:
    def play() -> PageTable:
        table = done(empty("straddling").grow({"a": 10, "b": 5}))
        table = done(table.free("a"))
        return done(table.grow({"b": 9, "c": 2}))

    assert play() == play()


@pytest.mark.promise("P1")
def test_a_page_freed_twice_is_found_at_once() -> None:
    placer = done(empty().grow({"a": 2 * SIZE})).lanes[0].placement.evolver()
    placer.give([1])
    with pytest.raises(IntegrityError, match="page 1 was freed twice"):
        placer.give([2, 1])


@pytest.mark.promise("P1")
def test_the_check_finds_what_is_broken() -> None:
    table = done(done(empty("straddling").grow({"a": 10, "b": 5})).fork("a", "c"))
    placement = table.lanes[0].placement
    page = table.pages("b")[0]

    def with_row(seq: str, *pages: int) -> PageTable:
        return replace(table, rows={**table.rows, seq: (np.array(pages, np.int32),)})

    def with_lane(**changes: Any) -> PageTable:
        return replace(table, lanes=(replace(table.lanes[0], **changes),))

    broken = {
        "5 tokens and 1 pages": with_row("b", page),
        "has a page twice": with_row("b", page, page),
        "pages are in as many rows as": with_lane(holders=Holders.none()),
        "0 pages are cached; the table counts 1": with_lane(
            holders=replace(table.lanes[0].holders, cached=1)
        ),
        "held twice": replace(table, retired=(Retired(1, ((page,),)),)),
        "without a length": with_row("x"),
        "does not exist": replace(table, retired=(Retired(1, ((10**6,),)),)),
        "not mapped": with_lane(placement=replace(placement, mapped=placement.mapped & ~2)),
        "are mapped; the table counts": with_lane(placement=replace(placement, mapped_chunks=1)),
        "marked the other way": with_lane(placement=replace(placement, warm=1)),
        "open pages are not": with_lane(placement=replace(placement, ready={9: 1})),
        r"\(open, used\) pages": with_lane(placement=replace(placement, used_pages=3)),
        r"\(used, open\) =": with_lane(
            placement=replace(placement, held=placement.held.set(0, (1, 1)))
        ),
    }
    for message, wrong in broken.items():
        with pytest.raises(IntegrityError, match=message):
            check_table(wrong)
