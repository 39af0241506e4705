"""What is lost when memory is a quarter of what the load needs.

    pytest tests/bench/test_bench_preemption.py --benchmark-enable --benchmark-only

Conversations take turns: what a turn needs has left the device when it comes, and is moved back or
computed again. The time is compared with that of a cache that has room for everything.
"""

import random
import statistics
import time
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

from .test_bench_model import shape

__all__ = ["shape"]

pytestmark = [pytest.mark.extra, pytest.mark.timeout(1200)]  # only `make bench` runs them

NEW = 32
GREEDY = SamplingParams(max_tokens=NEW, ignore_eos=True)
AT_ONCE = 4
ROUNDS = 6


class Load:
    """Conversations that are gone through several times, a few at a time.

    Args:
        count: conversations.
        context: tokens of each at the beginning.
        seed: of their tokens.
    """

    def __init__(self, count: int, context: int, seed: int) -> None:
        rng = random.Random(seed)
        self.histories = [rng.choices(range(49152), k=context) for _ in range(count)]
        self.said = [rng.choices(range(49152), k=16) for _ in range(count)]

    def round(self, runtime: Runtime) -> float:
        """Everyone says something and gets an answer. Returns the seconds it took."""
        start = time.perf_counter()
        for first in range(0, len(self.histories), AT_ONCE):
            some = range(first, min(first + AT_ONCE, len(self.histories)))
            asked = [self.histories[n] + self.said[n] for n in some]
            for n, prompt, result in zip(some, asked, runtime.generate(asked, GREEDY), strict=True):
                assert result.error is None
                self.histories[n] = [*prompt, *result.token_ids]
        return time.perf_counter() - start


def kv_bytes(runtime: Runtime, count: int, context: int, rounds: int) -> int:
    """What so many conversations take after so many rounds."""
    geometry = runtime.cache.table.lanes[0].geometry
    return count * geometry.pages_for(context + rounds * (16 + NEW)) * geometry.page_bytes


def make(shape: Path, **options: object) -> Runtime:
    defaults: dict[str, object] = {
        "load_format": "dummy", "dtype": "bfloat16", "backend": "cpu", "memory_limit": "8GiB",
    }  # fmt: skip
    return Runtime(shape, **{**defaults, **options})


@pytest.mark.parametrize("tier", ["host", "disk"])
@pytest.mark.benchmark(group="preemption: a pool of a quarter of the load, 24 conversations")
def test_a_quarter_of_the_pool(
    benchmark: BenchmarkFixture, shape: Path, tier: str, tmp_path: Path
) -> None:
    count, context = 24, 448
    offload = "host:4GiB" if tier == "host" else f"disk:{tmp_path}:8GiB"
    with (
        make(shape) as ample,
        make(shape, offload=offload) as moving,
        make(shape) as computing,
    ):
        quarter = ample.model.weight_bytes + kv_bytes(ample, count, context, 3) // 4
        moving.set_memory_limit(quarter)
        computing.set_memory_limit(quarter)
        seconds: dict[Runtime, list[float]] = {ample: [], moving: [], computing: []}
        loads = {runtime: Load(count, context, 0) for runtime in seconds}
        for runtime, load in loads.items():
            load.round(runtime)

        def run() -> None:
            for runtime, load in loads.items():
                seconds[runtime].append(load.round(runtime))

        benchmark.pedantic(run, rounds=3)
        histories = [load.histories for load in loads.values()]
        assert histories[0] == histories[1] == histories[2]
        fetched = moving.stats().offload
        assert fetched is not None
        assert fetched.fetched_pages > 0

    def kept(runtime: Runtime) -> float:
        pairs = zip(seconds[ample], seconds[runtime], strict=True)
        return round(statistics.median(whole / part for whole, part in pairs), 3)

    benchmark.extra_info.update(
        throughput_kept_by_moving=kept(moving), by_recomputing=kept(computing)
    )


@pytest.mark.benchmark(group="preemption: 16 requests of 256 + 128 tokens at once")
def test_all_at_once_in_a_quarter_of_the_pool(
    benchmark: BenchmarkFixture, shape: Path, tmp_path: Path
) -> None:
    """Few of them fit at a time, so that decode loses its batch, whatever becomes of the pages."""
    rng = random.Random(0)
    prompts = [rng.choices(range(49152), k=256) for _ in range(16)]
    params = SamplingParams(max_tokens=128, ignore_eos=True)
    seconds: dict[str, list[float]] = {"ample": [], "moving": [], "computing": []}
    with (
        make(shape) as ample,
        make(shape, offload="host:4GiB") as moving,
        make(shape) as computing,
    ):
        runtimes = {"ample": ample, "moving": moving, "computing": computing}
        pages = 16 * ample.cache.table.lanes[0].geometry.pages_for(256 + 128) // 4
        for runtime in (moving, computing):
            kv = pages * runtime.cache.page_bytes
            runtime.set_memory_limit(runtime.model.weight_bytes + kv)

        def run() -> None:
            for name, runtime in runtimes.items():
                runtime.invalidate()
                start = time.perf_counter()
                results = runtime.generate(prompts, params)
                seconds[name].append(time.perf_counter() - start)
                assert all(result.error is None for result in results)

        benchmark.pedantic(run, rounds=3)

    def kept(name: str) -> float:
        pairs = zip(seconds["ample"], seconds[name], strict=True)
        return round(statistics.median(whole / part for whole, part in pairs), 3)

    benchmark.extra_info.update(
        throughput_kept_by_moving=kept("moving"), by_recomputing=kept("computing")
    )


@pytest.mark.parametrize("context", [32, 128, 512, 1536])
@pytest.mark.benchmark(group="preemption: the choice by cost, over the better of the two forced")
def test_the_choice_by_cost(
    benchmark: BenchmarkFixture, shape: Path, context: int, tmp_path: Path
) -> None:
    count = 8
    seconds: dict[str, list[float]] = {"auto": [], "move": [], "recompute": []}
    runtimes = {
        choice: make(shape, offload=f"disk:{tmp_path / choice}:8GiB", preemption=choice)
        for choice in ("auto", "move")
    }
    runtimes["recompute"] = make(shape)  # no tier, so nothing else can be done
    for runtime in runtimes.values():
        limit = runtime.model.weight_bytes + kv_bytes(runtime, AT_ONCE, context, 1) * 3 // 2
        runtime.set_memory_limit(limit)
    loads = {choice: Load(count, context, 0) for choice in seconds}
    for choice, load in loads.items():
        load.round(runtimes[choice])

    order = list(loads)
    begin = Load(count, context, 0).histories

    def run() -> None:
        order.append(order.pop(0))  # who goes first finds another machine
        for choice in order:
            loads[choice].histories = list(begin)  # so that all rounds are alike
            seconds[choice].append(loads[choice].round(runtimes[choice]))

    benchmark.pedantic(run, rounds=ROUNDS)
    for runtime in runtimes.values():
        runtime.close()

    def over(choice: str, other: str) -> float:
        pairs = zip(seconds[choice], seconds[other], strict=True)
        return round(statistics.median(one / two for one, two in pairs), 3)

    benchmark.extra_info.update(
        auto_over_better=max(over("auto", "move"), over("auto", "recompute")),
        move_over_recompute=over("move", "recompute"),
    )
