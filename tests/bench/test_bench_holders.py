"""What it costs to share, cache and give up pages: no device.

    pytest tests/bench/test_bench_holders.py --benchmark-enable --benchmark-group-by=group

The last tests compare small with large in one process: what looks at all there is, or at each page
for itself, is found by them on any machine.
"""

import functools
import itertools
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from kvrt.kv.index.eviction import LeastRecentlyUsed
from kvrt.kv.index.prefix import PrefixIndex
from kvrt.kv.index.reuse import PrefixReuse
from kvrt.kv.pages.group import Group
from kvrt.kv.pages.table import Change, PageTable
from kvrt.kv.seq import Seq
from kvrt.kv.tiers.names import PageName

from .test_bench_pages import done, geometry

CACHED = 40_000
LONG = 2048


@functools.cache
def cached(rows: int) -> tuple[PageTable, PrefixIndex]:
    """So many rows of two pages, each used later than the one before it."""
    shape = geometry()
    table = PageTable.empty([Group(shape)], shape.chunks).table
    index = PrefixIndex(LeastRecentlyUsed(), [Group(shape)])
    table = done(table.grow(dict.fromkeys(range(rows), 2 * shape.page_size)))
    for seq in range(rows):
        first, second = table.pages(seq)
        key = seq.to_bytes(4, "little")
        before = index.add(PageName(key + b"1", b"", (), 0), (first,), None, 0, float(seq))
        index.add(PageName(key + b"2", key + b"1", (), 0), (second,), before, 1, float(seq))
    table = table.name((tuple(page for seq in range(rows) for page in table.pages(seq)),)).table
    everything = np.concatenate([table.row(seq) for seq in range(rows)])
    held = table.lanes[0].holders.evolver()
    held.drop(everything)
    lane = replace(table.lanes[0], holders=held.persistent())
    return replace(table, lengths={}, rows={}, lanes=(lane,)), index


def running(pages: int) -> PageTable:
    shape = geometry()
    table = PageTable.empty([Group(shape)], shape.chunks).table
    table = done(table.grow(dict.fromkeys(range(255), 1000)))
    table = done(table.grow({"long": pages * shape.page_size}))
    return table.name((table.pages("long"),)).table


@pytest.mark.benchmark(group="holders: 2,048 pages")
def test_fork(benchmark: BenchmarkFixture) -> None:
    benchmark(running(LONG).fork, "long", "child")


@pytest.mark.benchmark(group="holders: 2,048 pages")
def test_attach(benchmark: BenchmarkFixture) -> None:
    """Limit: 50 us."""
    table = running(LONG)
    benchmark(done(table.free("long")).attach, "next", (table.row("long"),))


@pytest.mark.benchmark(group="holders: 2,048 pages")
def test_free_what_stays_cached(benchmark: BenchmarkFixture) -> None:
    benchmark(running(LONG).free, "long")


@pytest.mark.benchmark(group="holders: 2,048 pages")
def test_name_the_next_pages_of_sixteen(benchmark: BenchmarkFixture) -> None:
    table = running(LONG)
    benchmark(table.name, (tuple(table.pages(seq)[0] for seq in range(16)),))


@pytest.mark.benchmark(group="holders: evict 16 of 40,000 cached rows (limit: 1 ms)")
def test_evict(benchmark: BenchmarkFixture) -> None:
    table, index = cached(CACHED)
    benchmark(evict, table, index)


def evict(table: PageTable, index: PrefixIndex | PrefixReuse) -> Change:
    change = table.forget(index.in_order().take(table, 16 * table.page_bytes))
    assert sum(map(len, change.dropped)) == 16 * len(table.lanes)
    return change


def best(call: Callable[[], object]) -> float:
    """Seconds, the least of many."""
    times = []
    for _ in range(30):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times)


def test_a_cache_a_hundred_times_as_large_takes_hardly_longer_to_evict_from() -> None:
    small, large = cached(CACHED // 100), cached(CACHED)
    assert best(lambda: evict(*large)) < 12 * best(lambda: evict(*small))


def beside_running(window: int) -> tuple[PageTable, PrefixReuse]:
    """A few cached rows that were used later than those of 64 sequences, which run."""
    shape = geometry()
    table = PageTable.empty([Group(shape), Group(shape, window)], shape.chunks).table
    now = itertools.count()
    reuse = PrefixReuse(table.groups, LeastRecentlyUsed(), now=lambda: float(next(now)))
    for number in range(68):
        length = 1024 + shape.page_size
        seq = Seq(number, [number] * length, length, 9999, computed=length, root=bytes(32))
        table = done(table.grow({number: length}))
        table = table.name(reuse.computed(seq, table.rows_of(number))).table
        if number >= 64:
            reuse.end(seq)
            change = table.free(number)
            table = change.table
            reuse.idled(change.idled)
    return table, reuse


def test_what_running_sequences_have_in_their_windows_is_not_looked_at_to_evict() -> None:
    small, large = beside_running(16), beside_running(1024)
    assert best(lambda: evict(*small)) > best(lambda: evict(*large)) / 12


@pytest.mark.parametrize("what", ["fork", "attach", "free"])
def test_two_thousand_pages_are_not_counted_one_by_one(what: str) -> None:
    def call(pages: int) -> Callable[[], Change]:
        table = running(pages)
        if what == "attach":
            row, table = table.row("long"), done(table.free("long"))
            return lambda: table.attach("next", (row,))
        return lambda: table.fork("long", "next") if what == "fork" else table.free("long")

    assert best(call(LONG)) < 25 * best(call(2))
