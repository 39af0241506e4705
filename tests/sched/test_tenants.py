"""Whose cached pages go where memory is short."""

import random
from collections import Counter

import pytest

from kvrt.kv.index import tenants
from kvrt.kv.pages.lanes import Pages
from kvrt.kv.tiers.names import tenant_of

from .forest import Forest
from .test_batching import GROUPS

ROOTS = [bytes([number]) * 32 for number in range(3)]


def held(forest: Forest) -> Counter[int]:
    """By tenant, its entries."""
    return Counter(entry.name.tenant for entry in forest.index)


def left(forest: Forest, pages: Pages) -> set[int]:
    """Tenants that have more to give up when these are."""
    table = forest.table.forget(pages).table
    rest = forest.reuse.in_order().take(table, table.idle_bytes)
    return {entry.name.tenant for entry, _ in forest.index.entries_of(rest)}


def test_of_several_tenants_the_one_that_has_most_gives_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tenants, "PROTECTED_S", 1e9)
    compared = 0
    for seed in range(6):
        rng = random.Random(seed)
        roots = [ROOTS[0], *ROOTS, ROOTS[0]]  # the first asks most
        forest = Forest(rng, GROUPS["full"], roots=roots)
        for _ in range(60):
            forest.step()
            before = held(forest)
            assert before == forest.index._ends.held
            taken = forest.reuse.in_order().take(forest.table, rng.choice([1, 4, 9]) * 512)
            after = before.copy()
            for entry, _ in forest.index.entries_of(taken):
                after[entry.name.tenant] -= 1
            for loser in before:
                for other in left(forest, taken) - {loser}:
                    if after[loser] < before[loser]:
                        assert after[loser] >= after[other] - 1, (before, after)
                        compared += 1
            if rng.random() < 0.2:
                forest.evict(rng.choice([1, 4]) * 512)
    assert compared > 100


@pytest.mark.parametrize("groups", GROUPS)
def test_all_that_nobody_holds_can_be_given_up_whosever_it_is(groups: str) -> None:
    forest = Forest(random.Random(1), GROUPS[groups], roots=ROOTS)
    for step in range(120):
        forest.now += 30 * (step % 3 == 0)  # some are asked for nothing for long
        forest.step()
        cursor = forest.reuse.in_order()
        first = cursor.take(forest.table, 2048)
        table = forest.table.forget(first).table
        rest = cursor.take(table, table.idle_bytes)
        assert table.forget(rest).table.idle_pages == 0
        if step % 5 == 0:
            forest.evict(1024)
    for seq in [*forest.seqs]:
        forest.end(seq)
    forest.evict(forest.table.idle_bytes)
    ends = forest.index._ends
    assert {**ends.parts, **ends.held, **ends.used} == {}
    assert not [*forest.index]


def test_what_nobody_has_asked_for_of_late_goes_first_however_little_it_is() -> None:
    forest = Forest(random.Random(2), GROUPS["full"], roots=ROOTS[:1])
    few, many = map(tenant_of, ROOTS[:2])

    def loser(steps: int) -> set[int]:
        for _ in range(steps):
            forest.step()
        for seq in [*forest.seqs]:
            forest.end(seq)
        taken = forest.reuse.in_order().take(forest.table, 512)
        return {entry.name.tenant for entry, _ in forest.index.entries_of(taken)}

    assert loser(5) == {few}
    forest.roots = ROOTS[1:2]
    assert loser(20) == {many}
    assert held(forest)[many] > held(forest)[few]
    forest.now += int(tenants.PROTECTED_S)
    assert loser(20) == {few}
