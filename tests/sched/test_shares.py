"""How much each tenant has where memory is short, and how what was lent comes back."""

import random

import pytest

from kvrt.kv.index import tenants
from kvrt.kv.index.shares import Shares
from kvrt.kv.tiers.names import tenant_of
from kvrt.sched.plan import Limits, StepPlan

from .forest import Forest
from .test_batching import GROUPS, Clock, Windows
from .test_tenants import held
from .test_waiting import sequence, waiting_for

ROOTS = [bytes([number]) * 32 for number in range(2)]


def test_tenants_take_turns_by_what_they_hold_for_their_shares() -> None:
    waiting = waiting_for(sequence(n, [n] * 10, "much" if n % 2 else "little") for n in range(1, 9))
    waiting.shares = Shares({"much": 3})
    assert [seq.id for seq in waiting.in_order(1)] == [1, 2, 3, 5, 4, 7, 6, 8]
    assert [seq.id for seq in waiting.in_order(1, {"much": 40})][:4] == [2, 4, 1, 3]


@pytest.mark.parametrize("weight", [1, 3])
def test_cached_pages_go_by_shares(weight: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenants, "PROTECTED_S", 1e9)
    forest = Forest(random.Random(3), GROUPS["full"], roots=[ROOTS[0], *ROOTS, ROOTS[1]])
    few, many = map(tenant_of, ROOTS)
    for _ in range(150):
        forest.step()
    for seq in [*forest.seqs]:
        forest.end(seq)
    assert held(forest)[few] > 20
    forest.index.set_share(many, weight)
    while len(forest.index) > 40:
        forest.evict(512)
    left = held(forest)
    assert left[many] / left[few] == pytest.approx(weight, rel=0.15)


def borrowed(clock: Clock) -> StepPlan:
    """One tenant fills the memory, and another's request waits behind."""
    for _ in range(5):
        clock.add(24, 200, tenant="borrower")
    for _ in range(4):
        clock.tick()
    clock.add(24, 8, tenant="lender")
    return clock.tick()


@pytest.mark.parametrize("windows", [GROUPS["full"], GROUPS["two windows"]])
def test_what_was_lent_comes_back_as_soon_as_it_is_needed(windows: Windows) -> None:
    clock = Clock(60 * len(windows), Limits(200, 9), windows=windows)
    clock.waiting.shares = Shares({"lender": 2})
    if windows != GROUPS["full"]:
        clock.table = clock.table.with_limit(20)
    plan = borrowed(clock)
    assert plan.held == "memory"
    assert {seq.tenant for seq in plan.preempted} == {"borrower"}
    plan = clock.tick()
    assert [seq.tenant for seq in plan.admitted] == ["lender"]
    for _ in range(7):
        assert not clock.tick().preempted
    assert [seq.tenant for seq in clock.finished] == ["lender"]


def test_without_shares_nobody_gives_back_what_he_has() -> None:
    clock = Clock(60, Limits(200, 9))
    plan = borrowed(clock)
    assert plan.held == "memory"
    assert not plan.preempted


def test_a_tenant_gives_no_more_than_leaves_it_what_it_is_due() -> None:
    clock = Clock(60, Limits(200, 9))
    clock.waiting.shares = Shares({"borrower": 9})
    assert not borrowed(clock).preempted


def test_who_is_served_behind_others_takes_nothing_from_them() -> None:
    clock = Clock(60, Limits(200, 9), "priority")
    clock.waiting.shares = Shares({"lender": 9})
    for _ in range(5):
        clock.add(24, 200, tenant="borrower")
    for _ in range(4):
        clock.tick()
    clock.add(24, 8, priority=1, tenant="lender")
    assert not clock.tick().preempted
