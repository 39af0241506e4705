"""What is given up of an index is what looking at all of its ends for each page would choose."""

import random
from dataclasses import dataclass, field

import numpy as np
import pytest

from kvrt.kv.index.eviction import CachedPage, LeastRecentlyUsed
from kvrt.kv.index.prefix import PrefixIndex
from kvrt.kv.index.reuse import PrefixReuse
from kvrt.kv.pages.table import Change, PageTable
from kvrt.kv.seq import Seq
from kvrt.kv.tiers.names import PageName
from kvrt.sched.batching import Limits, plan_step
from kvrt.sched.policy import POLICIES
from kvrt.sched.waiting import Waiting

from .test_batching import PAGE, table_of


@dataclass
class Forest:
    """An index of rows that begin alike, and the table with its pages; some rows are in use.

    Args:
        rng: what comes and goes.
    """

    rng: random.Random
    table: PageTable = field(default_factory=lambda: table_of(100))
    index: PrefixIndex = field(default_factory=lambda: PrefixIndex(LeastRecentlyUsed()))
    now: int = 0

    def row(self) -> None:
        """A sequence begins with some of another's pages, gets pages of its own, and may end."""
        self.now += 1
        known = [[]] + [list(self.table.pages(seq)) for seq in self.table.sequences]
        known += [self._before(entry) for entry in self.index]
        begin = [page for page in self.rng.choice(known) if self.index.at(page) is not None]
        begin = begin[: self.rng.randint(0, len(begin))]
        self.table = self.table.attach(self.now, (np.array(begin, np.int32),)).table
        grown = self.table.grow({self.now: PAGE * self.rng.randint(0, 5)})
        if isinstance(grown, Change):
            self.table = grown.table
        row = self.table.pages(self.now)
        for depth in range(len(begin), len(row)):
            key = self.rng.randbytes(32)
            name = PageName(key, bytes(32), (depth,), tenant=0)
            assert self.index.add(name, row[depth], row[depth - 1] if depth else 0, depth, self.now)
        self.table = self.table.name((row[len(begin) :],)).table
        self.index.touch(row, self.now)

    def end(self) -> None:
        seq = self.rng.choice([*self.table.sequences])
        self.index.touch(self.table.pages(seq), self.now)
        self.table = self.table.free(seq).table

    def evict(self, pages: list[int]) -> None:
        self.table = self.table.forget((tuple(pages),)).table
        assert len(self.index.forget(pages)) == len(pages)

    @staticmethod
    def _before(entry: CachedPage) -> list[int]:
        row = [entry.page]
        while entry.before is not None:
            entry = entry.before
            row.insert(0, entry.page)
        return row


def looking_at_all(
    index: PrefixIndex, table: PageTable, count: int, choice: int, gone: list[int]
) -> list[int]:
    """The same, page by page; those that are `gone` went before."""
    taken: list[int] = []
    while len(taken) < count:
        left = [entry for entry in index if entry.page not in (*gone, *taken)]
        inner = {entry.before for entry in left}
        ends = [
            entry
            for entry in left
            if entry not in inner and table.lanes[0].holders.idle(entry.page)
        ]
        if not ends:
            break
        ends.sort(key=lambda entry: (entry.worth, entry.page))
        least = ends[: min(-(-len(ends) // 4), choice)]
        taken.append(min(least, key=lambda e: table.lanes[0].placement.users_beside(e.page)).page)
    return taken


@pytest.mark.parametrize("seed", range(8))
def test_the_order_is_that_of_looking_at_all_of_them(seed: int) -> None:
    rng = random.Random(seed)
    forest = Forest(rng)
    evicted = 0
    for _ in range(120):
        forest.row()
        if rng.random() < 0.9:
            forest.end()
        for choice in (1, 8):
            count = rng.choice([0, 1, 3, 16, 200])
            cursor = forest.index.in_order()
            first = cursor.take(forest.table, count, choice)
            assert first == looking_at_all(forest.index, forest.table, count, choice, [])
            table = forest.table.forget((tuple(first),)).table
            second = cursor.take(table, 5, choice)
            assert second == looking_at_all(forest.index, table, 5, choice, first)
        if rng.random() < 0.3:
            evicted += len(first)
            forest.evict(first)
    assert evicted > 100


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
    named = reuse.computed(seq, grown.table.row(number))
    return seq, grown.table.name((tuple(named),)).table


def test_the_named_pages_of_who_is_preempted_are_what_others_get() -> None:
    reuse = PrefixReuse(PAGE, LeastRecentlyUsed(), now=lambda: 0.0)
    first, table = decoding(reuse, table_of(5), 1, 4)
    second, table = decoding(reuse, table, 2, 5)
    assert table.free_pages == 0
    plan = plan_step(table, [first, second], Waiting(POLICIES["fcfs"]), Limits(9, 9), 1, reuse)
    assert plan.preempted == (second,)
    assert not plan.stuck
    assert [row.seq for row in plan.rows] == [first]
    assert len(plan.change.lost()) == 1
    assert plan.table.idle_pages == 4
