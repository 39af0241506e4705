"""What becomes of cached pages of layers with a window, told on a single conversation."""

import pytest

from kvrt.kv.index.eviction import EVICTIONS, EvictionName
from kvrt.kv.index.reuse import PrefixReuse
from kvrt.kv.pages.table import Change
from kvrt.kv.seq import Seq
from kvrt.sched.batching import plan_step
from kvrt.sched.plan import Limits
from kvrt.sched.policy import POLICIES
from kvrt.sched.waiting import Waiting

from .test_batching import PAGE, Windows, table_of

FULL_AND_WINDOW = ((0, 0), (2 * PAGE, 0))
WINDOW = ((2 * PAGE, 0),)


class Talk:
    """Sequences that compute a page a step, one after the other.

    Args:
        windows: of the groups.
        policy: of eviction.
    """

    def __init__(self, windows: Windows, policy: EvictionName = "lru") -> None:
        self.table = table_of(60, windows)
        self.now = 0.0
        self.reuse = PrefixReuse(
            self.table.groups, EVICTIONS[policy](), ttl=100.0, now=lambda: self.now
        )
        self.ids = 0

    def begin(self, tokens: list[int]) -> Seq:
        self.ids += 1
        seq = Seq(self.ids, [*tokens, 0], len(tokens), 999, root=b"root" * 8)
        rows = self.reuse.match(seq)
        self.table = self.table.attach(seq.id, rows).table
        seq.computed = len(rows[0]) * PAGE
        self.reuse.begin(seq, rows, len(rows[0]))
        return seq

    def go_on(self, seq: Seq, pages: int = 99) -> None:
        while seq.computed < min(len(seq.tokens) - 1, pages * PAGE):
            self.now += 1
            grown = self.table.grow({seq.id: PAGE})
            assert isinstance(grown, Change)
            self.table = grown.table
            self.reuse.idled(grown.idled)
            seq.computed += PAGE
            if named := self.reuse.computed(seq, self.table.rows_of(seq.id)):
                self.table = self.table.name(named).table

    def end(self, seq: Seq) -> None:
        self.now += 1
        self.reuse.end(seq)
        change = self.table.free(seq.id)
        self.table = change.table
        self.reuse.idled(change.idled)

    def say(self, tokens: list[int]) -> int:
        """From its beginning to its end. Returns how many tokens were there already."""
        seq = self.begin(tokens)
        cached = seq.computed
        self.go_on(seq)
        self.end(seq)
        return cached

    def evict(self, pages: int) -> list[tuple[int, int]]:
        """So many pages, one after the other. Returns, of each, its group and its depth."""
        gone = []
        for _ in range(pages):
            taken = self.reuse.in_order().take(self.table, 1, choice=1)
            for group, own in enumerate(taken):
                for page in own:
                    entry = self.reuse.index.at(page, group)
                    assert entry is not None
                    gone.append((group, entry.depth))
            self.table = self.table.forget(taken).table
            self.reuse.dropped(taken)
        return gone


def said(pages: int, last: int = 1) -> list[int]:
    return [*range(100, 100 + (pages - 1) * PAGE), *[last] * PAGE]


@pytest.mark.parametrize("policy", EVICTIONS)
@pytest.mark.parametrize("windows", [FULL_AND_WINDOW, WINDOW])
def test_a_conversation_goes_on_when_all_is_gone_but_its_last_window(
    windows: Windows, policy: EvictionName
) -> None:
    talk = Talk(windows, policy)
    talk.say(said(12))
    group = len(windows) - 1
    assert talk.evict(10) == [(group, depth) for depth in range(10)]
    assert talk.say([*said(12), *range(PAGE)]) == 12 * PAGE


def test_what_a_window_left_a_moment_ago_was_used_a_moment_ago() -> None:
    talk = Talk(FULL_AND_WINDOW)
    first = talk.begin(said(12))
    talk.go_on(first, pages=3)
    talk.say([7] * 12 * PAGE)
    talk.go_on(first, pages=4)
    assert talk.table.pages(first.id, 1)[0] == 0
    talk.evict(12)
    entry = talk.reuse.index.find(first.names[0])
    assert entry is not None
    assert entry.pages[1]


@pytest.mark.parametrize("policy", ["lru", "lfu"])
def test_what_a_window_left_long_ago_goes_before_what_others_used_since(
    policy: EvictionName,
) -> None:
    talk = Talk(FULL_AND_WINDOW, policy)
    first = talk.begin(said(12))
    talk.go_on(first)
    talk.say([7] * 3 * PAGE)
    talk.end(first)
    assert talk.evict(9) == [(1, depth) for depth in range(9)]


def test_what_a_window_left_is_computed_once_more_and_found_from_then_on() -> None:
    talk = Talk(FULL_AND_WINDOW)
    first = talk.begin(said(12))
    talk.go_on(first)
    talk.evict(8)
    stem = said(12)[: 6 * PAGE]
    assert talk.say([*stem, *[1] * PAGE]) == 0, "no window is whole there"
    assert talk.say([*stem, *[2] * PAGE]) == 6 * PAGE
    talk.end(first)


def test_the_last_page_goes_with_its_window() -> None:
    talk = Talk(FULL_AND_WINDOW)
    talk.say(said(3))
    assert talk.evict(4) == [(1, 0), (1, 1), (1, 2), (0, 2)]
    talk = Talk(FULL_AND_WINDOW)
    talk.say(said(3))
    talk.end(talk.begin(said(3, last=2)))  # uses what both have in common
    assert talk.evict(2) == [(1, 2), (0, 2)]


def test_pages_that_are_unused_go_in_all_groups_and_leave_no_links() -> None:
    for windows in (FULL_AND_WINDOW, WINDOW):
        talk = Talk(windows)
        talk.say(said(8))
        talk.evict(3)
        change, patience = talk.reuse.expire(talk.table)
        assert patience == 100.0
        assert not any(change.dropped)
        talk.now += 100.0
        change, patience = talk.reuse.expire(talk.table)
        assert patience is None
        talk.reuse.dropped(change.dropped)
        assert change.table.idle_pages == len([*talk.reuse.index]) == 0


def test_a_page_is_said_to_be_gone_when_no_group_has_it_and_to_be_there_again() -> None:
    talk = Talk(WINDOW)
    first = talk.begin(said(4))
    talk.go_on(first)
    talk.evict(1)
    assert talk.say(said(4)) == 4 * PAGE, "it needs that one no more"
    talk.say(said(4)[:PAGE])
    events = [(event.kind, event.name) for event in talk.reuse.events.since(0)]
    names = first.names
    stored = [("stored", name) for name in names]
    assert events == [*stored, ("removed", names[0]), ("stored", names[0])]
    talk = Talk(FULL_AND_WINDOW)
    talk.say(said(4))
    talk.evict(4)
    assert [event.kind for event in talk.reuse.events.since(0)] == ["stored"] * 4


def test_who_looks_anew_gives_up_nothing_twice() -> None:
    """A plan that has given pages of a window up takes the rest with the ends of rows."""
    talk = Talk(FULL_AND_WINDOW)
    talk.say(said(12))
    few = talk.reuse.in_order().take(talk.table, 4096)
    assert any(few)
    table = talk.table.forget(few).table
    rest = talk.reuse.in_order().take(table, table.idle_bytes)
    assert table.forget(rest).table.idle_pages == 0


@pytest.mark.parametrize("windows", [FULL_AND_WINDOW, WINDOW])
def test_of_a_window_only_what_somebody_may_resume_with_is_worth_a_copy(windows: Windows) -> None:
    """Where a prompt ended, a row ends, or several go on differently: what is needed there."""
    talk = Talk(windows)
    first = talk.begin(said(12))
    first.prompt_len = 4 * PAGE + 1
    talk.go_on(first)
    talk.end(first)
    other = talk.begin([*said(12)[: 7 * PAGE], *[2] * 5 * PAGE])
    other.prompt_len = 7 * PAGE + 1
    talk.go_on(other)
    talk.end(other)
    leaving = talk.reuse.leaving(talk.reuse.index.pages_of([*talk.reuse.index]))
    depths = {
        group: sorted(
            entry.depth
            for name, page in leaving
            if name.group == group and (entry := talk.reuse.index.at(page, group)) is not None
        )
        for group in range(len(windows))
    }
    window, full = len(windows) - 1, 0
    assert depths[window] == [2, 3, 5, 6, 10, 10, 11, 11]
    assert windows == WINDOW or depths[full] == sorted([*range(12), *range(7, 12)])


def test_a_sequence_goes_on_in_as_many_pages_as_it_needs_though_all_of_them_are_named() -> None:
    """Of 5 pages it needs 5: for a window of two, and two that are computed at once."""
    table = table_of(3, WINDOW)
    reuse = PrefixReuse(table.groups, EVICTIONS["lru"](), now=lambda: 0.0)
    seq = Seq(1, [1] * 50 * PAGE, 0, 999, root=b"root" * 8)
    assert table.groups[0].most(len(seq.tokens), 2 * PAGE) == table.free_pages == 5
    running, waiting = list[Seq](), Waiting(POLICIES["fcfs"])
    waiting.append(seq)
    for step in range(25):
        plan = plan_step(table, running, waiting, Limits(2 * PAGE, 1), step, reuse)
        assert not plan.stuck
        for row in plan.rows:
            row.seq.computed += row.count
        reuse.dropped(plan.change.dropped)
        reuse.idled(plan.change.idled)
        table = plan.table.name(reuse.computed(seq, plan.table.rows_of(1))).table
        if not running:
            waiting.remove(seq)
            running.append(seq)
    assert seq.computed == seq.named * PAGE == 50 * PAGE
