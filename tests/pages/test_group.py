"""Which pages layers with a window keep, told token by token."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrt.kv.pages.group import Group
from kvrt.kv.pages.ops import Map, Scrub
from kvrt.kv.pages.table import Change, PageTable

from .shapes import SIZE, done, shape


def seen(group: Group, position: int) -> set[int]:
    """The pages that a token sees, of those before it."""
    positions = [
        at
        for at in range(position)
        if not group.window or at < group.sinks or at > position - group.window
    ]
    return {at // group.geometry.page_size for at in positions}


@given(
    size=st.integers(1, 5), window=st.integers(0, 30), sinks=st.integers(0, 12),
    length=st.integers(0, 60),
)  # fmt: skip
def test_what_is_kept_is_what_any_later_token_sees(
    size: int, window: int, sinks: int, length: int
) -> None:
    group = Group(replace(shape(), page_size=size), window, sinks)
    first, rest = group.kept(length)
    later = set().union(*(seen(group, at) for at in range(length, length + 80)))
    assert later & set(range(group.geometry.pages_for(length))) == {*first, *rest}
    assert not set(first) & set(rest)


@given(
    window=st.integers(1, 30), sinks=st.integers(0, 12),
    steps=st.lists(st.integers(1, 9), min_size=1, max_size=60),
)  # fmt: skip
def test_a_sequence_never_has_more_pages_than_is_said(
    window: int, sinks: int, steps: list[int]
) -> None:
    group = Group(shape("many in a chunk", chunks=99), window, sinks)
    table = PageTable.empty([group], 99).table
    for count in steps:
        table = done(table.grow({"a": count}))
        assert table.used_pages <= group.most(table.length("a"), max(steps))


def test_what_is_said_that_a_sequence_has_at_most_some_have() -> None:
    group = Group(shape("many in a chunk", chunks=99), window=10, sinks=3)
    table = PageTable.empty([group], 99).table
    most = 0
    for count in [2, *[7] * 40]:
        table = done(table.grow({"a": count}))
        most = max(most, table.used_pages)
    assert most == group.most(table.length("a"), 7)
    assert Group(shape()).most(9 * SIZE, 7) == 9


def grown(table: PageTable, count: int, times: int) -> PageTable:
    for _ in range(times):
        table = done(table.grow({"a": count}))
    return table


@pytest.mark.parametrize("window", [1, 4, 6, 9])
def test_a_sequence_with_a_window_holds_no_more_however_long_it_gets(window: int) -> None:
    table = PageTable.empty([Group(shape("many in a chunk", chunks=99), window)], 99).table
    most = 0
    for _ in range(200):
        table = grown(table, 1, 1)
        most = max(most, table.used_pages)
    assert table.length("a") == 200
    assert len(table.pages("a")) == 50
    assert most <= -(-window // SIZE) + 2
    assert done(table.free("a")).used_pages == 0


def test_what_is_given_up_is_free_at_once_and_can_be_taken_in_the_same_step() -> None:
    group = Group(shape("one chunk", chunks=99), window=SIZE)
    table = grown(PageTable.empty([group], 4, scrub=True).table, SIZE, 3)
    first = table.pages("a")[0]
    assert first == 0, "the window is behind it"
    change = table.grow({"a": SIZE})
    assert isinstance(change, Change)
    gone = table.pages("a")[1]
    assert change.ops == (Scrub(gone),)
    assert not [op for op in change.ops if isinstance(op, Map)]
    assert done(change).pages("a")[1:] == (0, table.pages("a")[2], gone)


def test_what_others_hold_stays_theirs() -> None:
    group = Group(shape("many in a chunk", chunks=99), window=3)
    table = grown(PageTable.empty([group], 99).table, SIZE, 2)
    row = table.pages("a")
    table = done(table.name((row[1:],)))
    table = done(table.fork("a", "b"))
    table = grown(table, SIZE, 3)
    assert table.pages("a")[:3] == (0, 0, 0)
    assert table.pages("b") == row
    assert done(table.free("b")).idle_pages == 1, "that has a name"


def test_drafts_can_be_taken_back_and_no_more() -> None:
    group = Group(shape("many in a chunk", chunks=99), window=5)
    table = grown(PageTable.empty([group], 99).table, 7, 4)
    assert done(table.truncate("a", 21)).length("a") == 21, "as long as before it grew"
    with pytest.raises(ValueError, match="has given up pages that 8 tokens need"):
        table.truncate("a", 8)
