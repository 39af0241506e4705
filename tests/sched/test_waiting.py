"""Waiting sequences are planned as if each step looked at all of them, and it does not."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pytest

from kvrt.kv.index.eviction import LeastRecentlyUsed
from kvrt.kv.index.reuse import PrefixReuse, Reuse
from kvrt.kv.index.shares import EVEN, Shares
from kvrt.kv.pages.integrity import check_table
from kvrt.kv.pages.lanes import Pages, Rows
from kvrt.kv.pages.table import Change
from kvrt.kv.seq import Seq
from kvrt.sched import admission, room
from kvrt.sched.batching import plan_step
from kvrt.sched.computing import Computing
from kvrt.sched.pages import PlannedPages
from kvrt.sched.plan import Limits, StepPlan
from kvrt.sched.policy import AGING_STEPS, POLICIES, PolicyName
from kvrt.sched.waiting import Waiting, held_by

from .test_batching import GROUPS, PAGE, Windows, table_of


class AllOfThem(Waiting):
    """Sorts all at every step."""

    def in_order(self, step: int, held: Mapping[str, int] = {}) -> Iterator[Seq]:
        left, taken = {*self}, Counter(held)

        def turn(seq: Seq) -> tuple[int, float, int]:
            level, arrival = self._policy.rank(seq, step)
            return level, self.shares.part(seq.tenant, taken[seq.tenant]), arrival

        while left:
            first = min(left, key=turn)
            left.remove(first)
            yield first
            taken[first.tenant] += len(first.tokens)


class OneByOne(Computing):
    """Asks all of the batch for the page behind those that are there."""

    yes = 0

    def __init__(self, reuse: Reuse, seqs: Sequence[Seq], draft: PlannedPages) -> None:
        self.others = [*seqs]
        self.reuse = reuse

    def add(self, seq: Seq, draft: PlannedPages) -> None:
        self.others.append(seq)

    def awaited(self, seq: Seq, draft: PlannedPages) -> bool:
        awaited = seq.matches and any(
            other.pending > 1
            and other.shares
            and other.named >= other.computed // PAGE
            and self.computes_the_next(other, seq, draft)
            for other in self.others
        )
        OneByOne.yes += awaited
        return awaited

    def computes_the_next(self, other: Seq, seq: Seq, draft: PlannedPages) -> bool:
        there = self.reuse.found(other.names, draft.dropped)
        if there >= min(len(other.names), len(seq.names)):
            return False
        same = other.names[there] == seq.names[there]
        if same and len(draft.table.lanes) == 1 and not draft.table.groups[0].window:
            assert len(self.reuse.match(seq, draft.dropped)[0]) == there
        return same


class Kitchen:
    """An engine without a device, whose sequences begin alike."""

    def __init__(
        self, rng: random.Random, policy: PolicyName, windows: Windows, tenants: str
    ) -> None:
        self.rng = rng
        see_all = any(not window for window, _ in windows)
        chunks = rng.choice([6, 9, 16] if see_all else [3, 4, 6])
        self.table = table_of(chunks * len(windows), windows)
        self.limits = Limits(rng.choice([6, 40, 99]), rng.choice([2, 5, 12]))
        self.policy = POLICIES[policy]
        self.reuse = PrefixReuse(
            self.table.groups, LeastRecentlyUsed(), now=lambda: float(self.step)
        )
        self.step = rng.randrange(2 * AGING_STEPS)
        self.running: dict[Seq, None] = {}
        self.waiting, self.all = Waiting(self.policy), AllOfThem(self.policy)
        self.begins = [[rng.randrange(9) for _ in range(rng.randrange(45))] for _ in range(4)]
        self.ids = 0
        self.tenants = tenants
        shares = rng.choice([EVEN, Shares({"a": 3}), Shares({"a": 1, "b": 9})])
        self.waiting.shares = self.all.shares = shares
        self.seen: Counter[str] = Counter()

    def add(self) -> None:
        rng = self.rng
        begin = rng.choice(self.begins)
        tokens = begin[: rng.choice([len(begin), rng.randrange(len(begin) + 1)])]
        tokens = tokens + [rng.randrange(9) for _ in range(rng.randrange(1, 9))]
        self.ids += 1
        seq = Seq(
            id=self.ids, tokens=tokens, prompt_len=len(tokens), priority=rng.randrange(-1, 2),
            max_len=min(len(tokens) + rng.randrange(1, 20), 60), arrival=self.ids,
            waiting_since=self.step, root=b"root" * 8,
            tenant=self.tenants[self.ids % len(self.tenants)],
            shares=rng.random() < 0.9, matches=rng.random() < 0.9,
        )  # fmt: skip
        self.join(seq)

    def join(self, seq: Seq) -> None:
        self.waiting.append(seq)
        self.all.append(seq)

    def leave(self, seq: Seq) -> None:
        self.waiting.remove(seq)
        self.all.remove(seq)

    def plan(self, waiting: Waiting) -> StepPlan:
        return plan_step(self.table, self.running, waiting, self.limits, self.step, self.reuse)

    def tick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.step += self.rng.choice([1, 1, 1, AGING_STEPS // 3])
        with monkeypatch.context() as patch:
            patch.setattr(admission, "Computing", OneByOne)
            right = self.plan(self.all)
        if self.rng.random() < 0.2:
            self.plan(self.waiting)  # and drop it: plans are values
        plan = self.plan(self.waiting)
        assert plan == right
        assert [*plan.admitted] == [*right.admitted]
        self.carry_out(plan)

    def carry_out(self, plan: StepPlan) -> None:
        self.reuse.dropped(plan.change.dropped)
        self.reuse.idled(plan.change.idled)
        self.table = plan.table
        check_table(self.table)
        for seq in plan.preempted:
            self.seen["preempted"] += 1
            del self.running[seq]
            seq.computed = seq.named = 0
            seq.preemptions += 1
            seq.waiting_since = self.step
            self.join(seq)
        for seq, cached in plan.admitted.items():
            self.seen["cached"] += bool(cached)
            self.leave(seq)
            self.running[seq] = None
            seq.rank = self.policy.rank(seq, self.step)
            seq.computed = cached
            rows = self.table.rows_of(seq.id)
            self.reuse.begin(seq, rows, cached // PAGE)
        for seq in plan.stuck:
            self.end(seq)
        for row in plan.rows:
            seq = row.seq
            seq.computed += row.count
            if named := self.reuse.computed(seq, self.table.rows_of(seq.id)):
                self.table = self.table.name(named).table
            if row.samples:
                seq.tokens.append(self.rng.randrange(9))
                if len(seq.tokens) >= seq.max_len:
                    self.end(seq)

    def end(self, seq: Seq) -> None:
        if seq in self.waiting:
            self.leave(seq)
        self.running.pop(seq, None)
        if seq.id in self.table:
            self.reuse.end(seq)
            change = self.table.free(seq.id)
            self.table = change.table
            self.reuse.idled(change.idled)


@pytest.mark.parametrize(
    ("policy", "groups"), [("priority", "full"), *(("fcfs", groups) for groups in GROUPS)]
)
def test_plans_are_those_of_looking_at_all_of_them(
    policy: PolicyName, groups: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OneByOne, "yes", 0)
    monkeypatch.setattr(room, "LOOKAHEAD_TOKENS", 4)  # more are admitted than there is room for
    seen: Counter[str] = Counter()
    for seed in range(60 if groups == "full" else 15):
        rng = random.Random(seed)
        kitchen = Kitchen(rng, policy, GROUPS[groups], ["a", "ab", "aaaab"][seed % 3])
        for _ in range(80):
            for _ in range(rng.choice([0, 0, 1, 4])):
                kitchen.add()
            if rng.random() < 0.2 and (live := [*kitchen.running, *kitchen.waiting]):
                kitchen.end(rng.choice(live))
            kitchen.tick(monkeypatch)
        seen += kitchen.seen
        for seq in [*kitchen.running, *kitchen.waiting]:
            kitchen.end(seq)
        assert not kitchen.table.used_pages
    least = 30 if groups == "full" else 5
    assert min(OneByOne.yes, seen["cached"]) > least, (OneByOne.yes, seen)
    assert seen["preempted"] > least or groups == "window"  # it hardly ever runs out


def sequence(number: int, tokens: list[int], tenant: str = "") -> Seq:
    return Seq(
        id=number, tokens=tokens, prompt_len=len(tokens), max_len=len(tokens) + 9, arrival=number,
        root=b"root" * 8, tenant=tenant,
    )  # fmt: skip


class Counting(PrefixReuse):
    """Counts how many waiting sequences planning looks at."""

    looks = 0

    def match(self, seq: Seq, without: Pages = ()) -> Rows:
        self.looks += 1
        return super().match(seq, without)


@pytest.fixture
def reuse() -> Counting:
    return Counting(table_of(1).groups, LeastRecentlyUsed())


def waiting_for(seqs: Iterable[Seq]) -> Waiting:
    waiting = Waiting(POLICIES["fcfs"])
    for seq in seqs:
        waiting.append(seq)
    return waiting


def test_a_step_without_a_place_looks_at_none_that_waits(reuse: Counting) -> None:
    running = sequence(1, [1] * 20)
    running.computed = 19
    table = table_of(90).grow({1: 19})
    assert isinstance(table, Change)
    waiting = waiting_for(sequence(n, [n] * 20) for n in range(2, 1002))
    for limits, looks in ((Limits(1, 9), 0), (Limits(99, 1), 0), (Limits(99, 2), 1)):
        reuse.looks = 0
        plan = plan_step(table.table, [running], waiting, limits, 1, reuse)
        assert len(plan.admitted) == reuse.looks == looks


def test_those_that_wait_for_a_page_cost_no_search_for_others(reuse: Counting) -> None:
    leader = sequence(1, [1] * 200)
    reuse.match(leader)
    seqs = [sequence(n, [1] * 160 + [n] * 40) for n in range(2, 1002)]
    for seq in seqs:
        reuse.match(seq)  # names its pages
    waiting, table, looks = waiting_for(seqs), table_of(400), []
    while leader.computed < 180:
        grown = table.grow({1: 20})
        assert isinstance(grown, Change)
        table = grown.table
        leader.computed += 20
        table = table.name(reuse.computed(leader, table.rows_of(1))).table
        reuse.looks = 0
        plan = plan_step(table, [leader], waiting, Limits(1000, 3), 1, reuse)
        looks.append((reuse.looks, len(plan.admitted)))
    assert looks == [*[(0, 0)] * 7, (2, 2), (2, 2)]


def test_tenants_take_turns_by_what_they_hold() -> None:
    many = [sequence(n, [n] * 20, "many") for n in range(1, 9)]
    long, short = sequence(9, [9] * 70, "long"), [sequence(n, [n] * 5, "short") for n in (10, 11)]
    waiting = waiting_for([*many, long, *short])
    assert [seq.id for seq in waiting.in_order(1)] == [1, 9, 10, 11, 2, 3, 4, 5, 6, 7, 8]
    held = held_by([sequence(12, [1] * 30, "short"), sequence(13, [1] * 6, "short")])
    assert [seq.id for seq in waiting.in_order(1, held)][:5] == [1, 9, 2, 10, 3]


def test_an_urgent_request_comes_before_one_whose_turn_it_is() -> None:
    waiting = Waiting(POLICIES["priority"])
    urgent, other = sequence(1, [1] * 20, "much"), sequence(2, [2], "nothing")
    urgent.priority = -1
    waiting.append(other)
    waiting.append(urgent)
    assert [seq.id for seq in waiting.in_order(1, {"much": 1000})] == [1, 2]


def test_who_holds_most_loses_its_pages_first() -> None:
    table = table_of(18)
    first, small = sequence(1, [1] * 16, "small"), sequence(2, [2] * 16, "small")
    big = [sequence(n, [n] * 48, "big") for n in (3, 4)]
    running = [first, small, *big]
    for seq in running:
        grown = table.grow({seq.id: len(seq.tokens)})
        assert isinstance(grown, Change)
        table = grown.table
        seq.computed, seq.rank = len(seq.tokens), (0, seq.arrival)
    small.preemptions, big[0].preemptions, big[1].preemptions = 0, 5, 6
    for seq in running:
        seq.tokens += [7] * 80
    plan = plan_step(table, running, waiting_for([]), Limits(999, 9), 1)
    assert [seq.tenant for seq in plan.preempted[:1]] == ["big"]
