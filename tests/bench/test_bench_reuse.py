"""What prefix reuse saves where it hits, and costs where it does not.

pytest tests/bench/test_bench_reuse.py --benchmark-enable --benchmark-only
"""

import itertools
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from kvrt.kv.index.eviction import LeastRecentlyUsed
from kvrt.kv.index.reuse import PrefixReuse
from kvrt.kv.pages.group import Group
from kvrt.kv.seq import Seq
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

from .test_bench_model import DTYPES, shape
from .test_bench_pages import geometry

__all__ = ["shape"]

pytestmark = pytest.mark.extra  # minutes, so only `make bench` runs them

SHARED, OWN, NEW, REQUESTS = 512, 32, 32, 16
GREEDY = SamplingParams(max_tokens=NEW, ignore_eos=True)


def prompts(seed: int, shared: int, own: int) -> list[list[int]]:
    rng = random.Random(seed)
    common = rng.choices(range(49152), k=shared)
    return [common + rng.choices(range(49152), k=own) for _ in range(REQUESTS)]


@pytest.fixture(params=DTYPES)
def pair(request: pytest.FixtureRequest, shape: Path) -> Iterator[tuple[Runtime, Runtime]]:
    """Two runtimes of one model: with reuse, and without."""
    options = {"load_format": "dummy", "dtype": request.param, "backend": "cpu"}
    with (
        Runtime(shape, **options) as reusing,  # type: ignore[arg-type]
        Runtime(shape, **options, prefix_cache=False) as computing,  # type: ignore[arg-type]
    ):
        yield reusing, computing


def seconds(runtime: Runtime, asked: list[list[int]]) -> float:
    start = time.perf_counter()
    results = runtime.generate(asked, GREEDY)
    assert all(result.error is None for result in results)
    return time.perf_counter() - start


def compare(
    benchmark: BenchmarkFixture,
    pair: tuple[Runtime, Runtime],
    shared: int,
    own: int,
    rounds: int,
) -> None:
    reusing, computing = pair
    ratios: list[float] = []
    seeds = itertools.count()

    def run() -> None:
        seed = next(seeds)
        asked = prompts(seed, shared, own)  # never the same: hits are within the 16 only
        order = pair if seed % 2 else pair[::-1]  # who goes first finds another machine
        times = {runtime: seconds(runtime, asked) for runtime in order}
        ratios.append(times[reusing] / times[computing])

    run()
    ratios.clear()
    benchmark.pedantic(run, rounds=rounds)
    stats = reusing.stats().reuse
    benchmark.extra_info.update(
        time_with_reuse_over_without=round(statistics.median(ratios), 3),
        cached_share_of_prompts=round(stats.cached_tokens / stats.prompt_tokens, 3),
    )


@pytest.mark.benchmark(group=f"reuse: {REQUESTS} requests share {SHARED} tokens")
def test_a_shared_prefix(benchmark: BenchmarkFixture, pair: tuple[Runtime, Runtime]) -> None:
    compare(benchmark, pair, SHARED, OWN, rounds=3)


@pytest.mark.timeout(900)
@pytest.mark.benchmark(group=f"reuse: {REQUESTS} requests share nothing")
def test_never_hit(benchmark: BenchmarkFixture, pair: tuple[Runtime, Runtime]) -> None:
    compare(benchmark, pair, 0, 64, rounds=16)


@pytest.mark.benchmark(group="reuse: lookup of 8,000 cached tokens")
def test_lookup(benchmark: BenchmarkFixture) -> None:
    tokens = random.Random(0).choices(range(49152), k=8001)

    def seq() -> Seq:
        return Seq(id=1, tokens=list(tokens), prompt_len=len(tokens), max_len=9000, root=bytes(32))

    reuse = PrefixReuse([Group(geometry())], LeastRecentlyUsed())
    first = seq()
    first.computed = 8000
    row = np.arange(1, 501, dtype=np.int32)
    reuse.computed(first, (row,))

    def look_up(asked: Seq) -> None:
        assert np.array_equal(reuse.match(asked)[0], row)

    benchmark.pedantic(look_up, setup=lambda: ((seq(),), {}), rounds=30)
    benchmark.extra_info.update(ms_per_1000_tokens=round(benchmark.stats.stats.median * 1e3 / 8, 4))
