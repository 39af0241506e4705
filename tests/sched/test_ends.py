"""What is given up of an index is what looking at all of it for each page would choose, and what is
found afterwards is what is there."""

import random
from collections import Counter

import pytest

from kvrt.kv.index.eviction import CachedPage, LeastRecentlyUsed
from kvrt.kv.index.prefix import PrefixIndex
from kvrt.kv.index.reuse import PrefixReuse
from kvrt.kv.pages.lanes import Pages
from kvrt.kv.pages.table import Change, PageTable
from kvrt.kv.seq import Seq
from kvrt.sched.batching import plan_step
from kvrt.sched.plan import Limits
from kvrt.sched.policy import POLICIES
from kvrt.sched.waiting import Waiting

from .forest import Forest
from .test_batching import GROUPS, PAGE, Windows, table_of

Gone = set[tuple[CachedPage, int]]


def looking_at_all(
    index: PrefixIndex, table: PageTable, nbytes: int, choice: int, gone: Gone
) -> Pages:
    """The same, one after the other; what is `gone` went before, and what goes is added to it."""
    parts = index._ends.parts.values()
    known = {item[4:]: item[:4] for part in parts for item in part._heap if part._is_right(item)}
    full = next((at for at, group in enumerate(table.groups) if not group.window), None)
    taken: list[list[int]] = [[] for _ in table.lanes]
    found = 0
    while found < nbytes:
        inner = {entry.before for entry in index if (entry, full) not in gone}
        offered = []
        for entry in index:
            for group, page in enumerate(entry.pages):
                windowed = table.groups[group].window > 0
                if not page or (entry, group) in gone or not (windowed or group == full):
                    continue
                if not table.lanes[group].holders.idle(page) or (not windowed and entry in inner):
                    continue
                end = (entry.worth, True, page, -1)
                offered.append((known.get((entry, group), end), entry, group))
        if not offered:
            break
        offered.sort(key=lambda offer: offer[0])
        least = offered[: min(-(-len(offered) // 4), choice)]
        _, entry, group = min(least, key=lambda offer: beside(table, offer[1].pages, offer[2]))
        for each in range(len(table.lanes)) if group == full else (group,):
            page = entry.pages[each]
            if page and (entry, each) not in gone:
                gone.add((entry, each))
                taken[each].append(page)
                lane = table.lanes[each]
                found += lane.holders.idle(page) * lane.geometry.page_bytes
    return tuple(map(tuple, taken))


def beside(table: PageTable, pages: tuple[int, ...], group: int) -> int:
    lane = table.lanes[group]
    return lane.placement.users_beside(pages[group]) * lane.geometry.page_bytes


@pytest.mark.parametrize("groups", GROUPS)
def test_the_order_is_that_of_looking_at_all_of_them(groups: str) -> None:
    evicted = 0
    for seed in range(3):
        rng = random.Random(seed)
        forest = Forest(rng, GROUPS[groups])
        for _ in range(80):
            forest.step()
            for choice in (1, 8):
                nbytes = rng.choice([0, 1, 3, 16, 200]) * 512
                gone: Gone = set()
                cursor = forest.reuse.in_order()
                first = cursor.take(forest.table, nbytes, choice)
                assert first == looking_at_all(forest.index, forest.table, nbytes, choice, gone)
                table = forest.table.forget(first).table
                second = cursor.take(table, 2560, choice)
                assert second == looking_at_all(forest.index, table, 2560, choice, gone)
            if rng.random() < 0.2:
                evicted += sum(map(len, forest.evict(rng.choice([1, 4, 20]) * 512)))
    assert evicted > 100


@pytest.mark.parametrize("windows", [*GROUPS.values(), ((1, 0), (0, 0))])
def test_what_is_found_is_what_each_group_has(windows: Windows) -> None:
    seen: Counter[str] = Counter()
    for seed in range(4):
        forest = Forest(random.Random(seed), windows, chunks=40)
        for step in range(75):
            forest.step()
            if forest.rng.random() < 0.2:
                forest.evict(forest.rng.choice([1, 3, 8]) * 512)
            if step % 3 == 0:
                forest.check()
        seen += forest.seen
        for seq in [*forest.seqs]:
            forest.end(seq)
        forest.evict(forest.table.idle_bytes)
        forest.check()
        assert forest.table.used_pages == forest.table.idle_pages == len([*forest.index]) == 0
    assert min(seen["hit"], seen["evicted"]) > 30, seen
    if windows != GROUPS["full"]:
        assert seen["links"] > 10, seen
        assert seen["filled"] > (10 if windows in GROUPS.values() else 0), seen


def decoding(
    reuse: PrefixReuse, table: PageTable, number: int, pages: int
) -> tuple[Seq, PageTable]:
    """A sequence whose pages are full, and have names."""
    tokens = [number] * (pages * PAGE + 1)
    seq = Seq(
        id=number, tokens=tokens, prompt_len=len(tokens), max_len=99, arrival=number,
        rank=(0, number), root=b"root" * 8, computed=pages * PAGE,
    )  # fmt: skip
    grown = table.grow({number: seq.computed})
    assert isinstance(grown, Change)
    named = reuse.computed(seq, grown.table.rows_of(number))
    return seq, grown.table.name(named).table


def test_the_named_pages_of_who_is_preempted_are_what_others_get() -> None:
    table = table_of(5)
    reuse = PrefixReuse(table.groups, LeastRecentlyUsed(), now=lambda: 0.0)
    first, table = decoding(reuse, table, 1, 4)
    second, table = decoding(reuse, table, 2, 5)
    assert table.free_pages == 0
    plan = plan_step(table, [first, second], Waiting(POLICIES["fcfs"]), Limits(9, 9), 1, reuse)
    assert plan.preempted == (second,)
    assert not plan.stuck
    assert [row.seq for row in plan.rows] == [first]
    assert len(plan.change.lost()) == 1
    assert plan.table.idle_pages == 4
