"""The planner, run in virtual time: no device, no model, one number for each token."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvrt.kv.index.shares import EVEN, Shares
from kvrt.kv.pages.geometry import Geometry
from kvrt.kv.pages.group import Group
from kvrt.kv.pages.table import PageTable
from kvrt.kv.seq import Seq
from kvrt.sched import room
from kvrt.sched.batching import plan_step
from kvrt.sched.plan import Limits, StepPlan
from kvrt.sched.policy import AGING_STEPS, POLICIES, PolicyName
from kvrt.sched.waiting import Waiting

PAGE = 4
CHUNK_PAGES = 2


Windows = tuple[tuple[int, int], ...]
"""Of groups of layers: the window, 0 for none, and the first positions that are seen as well."""

GROUPS: dict[str, Windows] = {
    "full": ((0, 0),),
    "window": ((9, 0),),
    "full and window": ((0, 0), (6, 0)),
    "full and window with sinks": ((0, 0), (11, 5)),
    "two windows": ((14, 0), (5, 2)),
    "window between two full": ((0, 0), (10, 0), (0, 0)),
}


def table_of(chunks: int, windows: Windows = GROUPS["full"]) -> PageTable:
    """Room for ``2 * chunks - 1`` pages of 4 tokens (the null page takes one), of the first group;
    twice as many of the second."""
    groups = []
    for at, window in enumerate(windows):
        page_bytes = 1024 >> at % 2
        pages = CHUNK_PAGES * chunks * 1024 // page_bytes
        geometry = Geometry(page_bytes, PAGE, chunk_bytes=CHUNK_PAGES * 1024, pages=pages)
        groups.append(Group(geometry, *window))
    return PageTable.empty(groups, chunks).table


def least_chunks(longest: int, at_once: int, windows: Windows) -> int:
    """For one sequence that has so many tokens in the end, and computes so many at once."""
    groups = table_of(100, windows).groups
    return sum(each.geometry.chunks_of(each.most(longest, at_once)).stop for each in groups)


class Clock:
    """An engine without a device: what the engine does with a plan, and nothing else."""

    def __init__(
        self,
        chunks: int,
        limits: Limits,
        policy: PolicyName = "fcfs",
        windows: Windows = GROUPS["full"],
    ) -> None:
        self.table = table_of(chunks, windows)
        self.limits = limits
        self.policy = POLICIES[policy]
        self.step = 0
        self.running: list[Seq] = []
        self.waiting = Waiting(self.policy)
        self.finished: list[Seq] = []
        self.stuck: list[Seq] = []
        self.ids = 0
        self.later: int | None = None
        self.shed = False

    def add(self, prompt: int, new: int, priority: int = 0, tenant: str = "") -> Seq:
        self.ids += 1
        seq = Seq(
            id=self.ids, tokens=[0] * prompt, prompt_len=prompt, max_len=prompt + new,
            priority=priority, arrival=self.ids, waiting_since=self.step, tenant=tenant,
        )  # fmt: skip
        self.waiting.append(seq)
        return seq

    def tick(self) -> StepPlan:
        self.step += 1
        before = self.table
        plan = plan_step(
            self.table, self.running, self.waiting, self.limits, self.step,
            shed=self.shed, later=self.later,
        )  # fmt: skip
        assert self.table is before
        self.check(plan)
        self.table = plan.table
        apart = len(plan.preempted) == len(self.running)
        for seq in plan.preempted:
            seq.apart = apart
        for seq in plan.aside:
            seq.needs = self.table.limit + max(1, self.table.limit // 8)
        for seq in [*plan.preempted, *plan.aside]:
            if seq in self.waiting:
                continue
            self.running.remove(seq)
            seq.computed = 0
            seq.preemptions += 1
            seq.waiting_since = self.step
            self.waiting.append(seq)
        for seq in plan.admitted:
            self.waiting.remove(seq)
            self.running.append(seq)
            seq.rank = self.policy.rank(seq, self.step)
        for seq in plan.stuck:
            (self.running if seq in self.running else self.waiting).remove(seq)
            self.stuck.append(seq)
        for row in plan.rows:
            row.seq.computed += row.count
            if row.samples:
                row.seq.tokens.append(self.step)
                if len(row.seq.tokens) >= row.seq.max_len:
                    self.running.remove(row.seq)
                    self.finished.append(row.seq)
                    self.table = self.table.free(row.seq.id).table
        return plan

    def check(self, plan: StepPlan) -> None:
        """What holds in every plan."""
        assert sum(row.count for row in plan.rows) <= self.limits.max_batch_tokens
        assert len({row.seq.id for row in plan.rows}) == len(plan.rows)
        for row in plan.rows:
            assert row.start == row.seq.computed
            assert 1 <= row.count <= row.seq.pending
            assert row.samples == (row.count == row.seq.pending)
            assert plan.table.length(row.seq.id) == row.start + row.count
        assert plan.table.mapped_chunks <= max(plan.table.limit, self.table.mapped_chunks)
        passed = {*plan.admitted, *plan.stuck, *plan.awaiting}
        left = [seq for seq in self.waiting if seq not in passed]
        assert (plan.held is not None) == bool(left or plan.preempted or plan.stuck or plan.aside)
        if plan.held == "tokens":
            assert sum(row.count for row in plan.rows) == self.limits.max_batch_tokens

    def run(self, steps: int) -> None:
        while self.waiting or self.running:
            self.tick()
            assert self.step < steps, "no progress"


def decoding(clock: Clock, count: int) -> list[Seq]:
    """Sequences that have computed their prompt and bring one token a step."""
    seqs = [clock.add(3, 100) for _ in range(count)]
    while any(seq.pending != 1 or not seq.computed for seq in seqs):
        clock.tick()
    return seqs


def test_a_plan_says_why_others_wait() -> None:
    for why, chunks, limits, one, other in (
        ("places", 100, Limits(64, 1), (3, 9), (3, 9)),
        ("tokens", 100, Limits(8, 9), (8, 9), (3, 9)),
        ("memory", 2, Limits(64, 9), (3, 9), (9, 3)),
        (None, 100, Limits(64, 9), (3, 9), (3, 9)),
    ):
        clock = Clock(chunks, limits)
        clock.add(*one)
        clock.add(*other)
        assert clock.tick().held == why
    clock = Clock(100, Limits(64, 9))
    clock.add(3, 9).apart = True
    clock.add(3, 9)
    clock.tick()
    assert clock.tick().held == "alone"


def test_each_of_several_completions_takes_a_place() -> None:
    clock = Clock(200, Limits(512, 5))
    wide = [clock.add(3, 100) for _ in range(2)]
    for seq in wide:
        seq.width = 3
    assert list(clock.tick().admitted) == wide[:1], "the other has three, and two places are left"
    narrow = clock.add(3, 100)
    clock.waiting.remove(wide[1])
    assert list(clock.tick().admitted) == [narrow]
    clock.waiting.append(wide[1])
    wide[1].width = 2
    assert not clock.tick().admitted, "one place is left"
    alone = Clock(200, Limits(512, 2))
    alone.add(3, 100).width = 3
    assert len(alone.tick().admitted) == 1, "what is alone need not fit"


def counts(plan: StepPlan, seqs: Sequence[Seq]) -> list[int]:
    by_id = {row.seq.id: row.count for row in plan.rows}
    return [by_id.get(seq.id, 0) for seq in seqs]


def test_decodes_come_first_and_a_long_prompt_fills_the_rest_in_chunks() -> None:
    clock = Clock(100, Limits(max_batch_tokens=10, max_running=8))
    old = decoding(clock, 3)
    new = clock.add(20, 1)
    seen = [counts(clock.tick(), [*old, new]) for _ in range(3)]
    assert seen == [[1, 1, 1, 7], [1, 1, 1, 7], [1, 1, 1, 6]]
    assert new in clock.finished


def test_no_more_run_together_than_allowed() -> None:
    clock = Clock(100, Limits(max_batch_tokens=64, max_running=3))
    for _ in range(7):
        clock.add(4, 6)
    while clock.waiting:
        clock.tick()
        assert len(clock.running) <= 3
    clock.run(1000)
    assert len(clock.finished) == 7


def test_first_come_is_first_served_even_if_a_later_one_would_fit() -> None:
    clock = Clock(8, Limits(64, 8))
    first, large, small = clock.add(30, 20), clock.add(40, 2), clock.add(2, 2)
    clock.tick()
    assert clock.running == [first]
    while small in clock.waiting:
        clock.tick()
        assert not (small in clock.running and large in clock.waiting)
    clock.run(500)
    assert clock.finished[0] is first


def test_the_last_served_gives_its_pages_back_and_finishes_later() -> None:
    clock = Clock(20, Limits(64, 8))
    seqs = [clock.add(8, 100) for _ in range(3)]
    clock.run(1000)
    assert clock.finished[0] is seqs[0]
    assert seqs[0].preemptions == 0
    assert sum(seq.preemptions for seq in seqs) > 0
    assert all(len(seq.tokens) == 108 for seq in seqs)
    assert clock.table.used_pages == 0


def test_who_was_preempted_before_is_spared() -> None:
    clock = Clock(30, Limits(64, 8))
    first, fresh, again = (clock.add(8, 100) for _ in range(3))
    again.preemptions = 3
    clock.tick()
    assert clock.running == [first, fresh, again]
    plans = [clock.tick() for _ in range(100)]
    assert next(plan.preempted for plan in plans if plan.preempted) == (fresh,)
    assert not first.preemptions


@pytest.mark.parametrize(("completions", "fits"), [(1, True), (2, True), (6, False)])
def test_a_request_is_admitted_if_all_its_completions_have_room(
    completions: int, fits: bool
) -> None:
    """Of 15 pages one runs in 4; the other needs 3, and 2 more for each further completion."""
    clock = Clock(8, Limits(256, 8))
    running = clock.add(8, 8)
    clock.tick()
    other = clock.add(6, 6)
    other.width = completions
    plan = clock.tick()
    assert running in clock.running
    assert (other in plan.admitted) is fits


def test_a_sequence_that_cannot_go_on_even_alone_is_stuck_and_said_to_be() -> None:
    clock = Clock(3, Limits(64, 8))
    seq = clock.add(10, 100)
    clock.run(200)
    assert clock.stuck == [seq]
    assert len(seq.tokens) >= 5 * PAGE, "it used all there was"
    assert clock.table.used_pages == 0


def test_admission_leaves_the_running_ones_room_to_go_on() -> None:
    clock = Clock(18, Limits(256, 8))
    running = clock.add(60, 60)
    clock.tick()
    clock.add(60, 4)
    for _ in range(20):
        clock.tick()
    assert running.preemptions == 0
    assert clock.waiting, "35 pages hold one of 30 and not also one of 16 beside it"


def test_a_sequence_with_a_window_is_left_no_more_room_than_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 15 pages each needs 5 for a window of 8 tokens and 8 that are computed at once, and 3 when
    it brings a token a step."""
    monkeypatch.setattr(room, "LOOKAHEAD_TOKENS", 1000)
    clock = Clock(8, Limits(8, 8), windows=((8, 0),))
    seqs = [clock.add(8, 200) for _ in range(6)]
    for _ in range(20):
        clock.tick()
    assert clock.running == seqs[:4]
    clock.run(2000)
    assert clock.finished == seqs
    assert not any(seq.preemptions for seq in seqs)


def test_urgent_ones_go_first_and_waiting_raises_the_others() -> None:
    clock = Clock(100, Limits(8, 1), "priority")
    low = clock.add(4, 2, priority=3)
    high = clock.add(4, 2, priority=0)
    clock.run(100)
    assert clock.finished == [high, low]
    low = clock.add(4, 2, priority=1)
    while low not in clock.finished:
        clock.add(4, 2, priority=0)
        clock.tick()
        assert clock.step < 3 * AGING_STEPS, "starved by a stream of urgent ones"


@pytest.mark.promise("P18")
@pytest.mark.parametrize("seed", [8, 12, 13])
def test_a_sequence_whose_pages_lie_in_too_many_chunks_begins_again_beside_no_other(
    seed: int,
) -> None:
    """With these seeds, one group lacks a chunk while another has pages open in many."""
    rng, longest, windows = random.Random(seed), 160, GROUPS["full and window with sinks"]
    clock = Clock(least_chunks(longest, 4, windows), Limits(4, 12), windows=windows)
    for _ in range(20):
        for _ in range(rng.randint(0, 24)):
            clock.tick()
        prompt = rng.randint(1, rng.choice([20, 150]))
        all_left = rng.random() >= 0.5
        clock.add(prompt, longest - prompt if all_left else rng.randint(1, longest - prompt))
    clock.run(5000)
    assert not clock.stuck
    assert any(seq.apart for seq in clock.finished)


@pytest.mark.promise("P18")
@settings(max_examples=300, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(
            st.integers(0, 6),  # steps since the one before
            st.integers(1, 30),  # prompt
            st.integers(1, 14),  # new tokens
            st.integers(0, 3),  # priority
            st.sampled_from("abc"),  # tenant
        ),
        min_size=1,
        max_size=30,
    ),
    tokens=st.integers(1, 40),
    places=st.integers(1, 8),
    policy=st.sampled_from(["fcfs", "priority"]),
    more=st.integers(0, 6),
    groups=st.sampled_from([*GROUPS]),
    shares=st.sampled_from([EVEN, Shares({"a": 1}), Shares({"a": 9, "b": 2})]),
)
def test_every_request_that_fits_finishes_under_any_arrivals(
    arrivals: list[tuple[int, int, int, int, str]],
    tokens: int,
    places: int,
    policy: PolicyName,
    more: int,
    groups: str,
    shares: Shares[str],
) -> None:
    """The longest just fits, or there are a few chunks more."""
    windows = GROUPS[groups]
    longest = max(prompt + new for _, prompt, new, *_ in arrivals)
    chunks = least_chunks(longest, tokens, windows) + more
    clock = Clock(chunks, Limits(tokens, places), policy, windows)
    clock.waiting.shares = shares
    bound = 200
    for wait, prompt, new, priority, tenant in arrivals:
        for _ in range(wait):
            clock.tick()
        clock.add(prompt, new, priority, tenant)
        bound += wait + 60 * (prompt + new)
    clock.run(bound)
    assert len(clock.finished) == len(arrivals)
    assert clock.table.used_pages == 0
