"""Pages go to host memory and disk and come back, and no answer changes."""

import random
from pathlib import Path

import pytest

from kvrt.kv.offload import OffloadStats
from kvrt.outputs import Result
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.testing.chaos import Chaos

from .conftest import Break, MakeRuntime, until

PAGE = 16
CHUNK = 2 << 20
PAGE_BYTES = 256 << 10
GREEDY = SamplingParams(max_tokens=8, ignore_eos=True)
LONG = SamplingParams(max_tokens=24, ignore_eos=True)
VERY_LONG = SamplingParams(max_tokens=200, ignore_eos=True)
rng = random.Random(5)
STEMS = [[rng.randrange(199) for _ in range(150)] for _ in range(6)]
"""Six prefixes of nine pages each, where the pool of `squeezed` has room for three of them."""


def prompts(count: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [
        rng.choice(STEMS)[: rng.randint(1, 150)] + [rng.randrange(9)] * rng.randint(1, 9)
        for _ in range(count)
    ]


def squeezed(make_runtime: MakeRuntime, offload: str, **options: object) -> Runtime:
    runtime = make_runtime(offload=offload, **{"max_running": 4, **options})
    runtime.set_memory_limit(runtime.model.weight_bytes + 4 * CHUNK)
    return runtime


def offloaded(runtime: Runtime) -> OffloadStats:
    stats = runtime.stats().offload
    assert stats is not None
    return stats


def tokens(results: list[Result]) -> list[tuple[int, ...]]:
    assert all(result.error is None for result in results)
    return [result.token_ids for result in results]


@pytest.fixture(scope="module")
def right(tiny_lm: Path) -> list[tuple[int, ...]]:
    """What a runtime says that reuses nothing and has all the memory it wants."""
    with Runtime(tiny_lm, backend="cpu", load_format="dummy", seed=1, prefix_cache=False) as cold:
        return tokens(cold.generate(prompts(60, 1), LONG))


TIERS = ("host:64MiB", "disk:{}:256MiB", "host:3MiB,disk:{}:256MiB")


@pytest.mark.promise("P15")
@pytest.mark.promise("P20")
@pytest.mark.parametrize("write", ["back", "through"])
@pytest.mark.parametrize("tiers", TIERS)
def test_what_was_evicted_comes_back_and_says_the_same(
    tiers: str,
    write: str,
    make_runtime: MakeRuntime,
    right: list[tuple[int, ...]],
    break_device: Break,
    tmp_path: Path,
) -> None:
    break_device(lambda device: Chaos(device, seed=3))
    runtime = squeezed(make_runtime, tiers.format(tmp_path), offload_write=write, preemption="move")
    asked = prompts(60, 1)
    for start in range(0, 60, 12):
        answers = tokens(runtime.generate(asked[start : start + 12], LONG))
        assert answers == right[start : start + 12]
    stats = offloaded(runtime)
    assert stats.saved_pages > 20
    assert stats.fetched_pages > 20
    assert stats.missed_pages == 0
    assert runtime.stats().cache.used_pages == 0


@pytest.mark.promise("P15")
def test_the_preempted_come_back_from_a_tier(
    make_runtime: MakeRuntime, right: list[tuple[int, ...]], break_device: Break
) -> None:
    """Each is preempted when others need its pages; they are moved, not computed again."""
    cold = make_runtime(prefix_cache=False)
    break_device(lambda device: Chaos(device, seed=4))
    runtime = squeezed(make_runtime, "host:64MiB", preemption="move", max_running=16)
    results = runtime.generate(prompts(12, 1), VERY_LONG)
    assert [answer[: LONG.max_tokens] for answer in tokens(results)] == right[:12]
    assert tokens(results) == tokens(cold.generate(prompts(12, 1), VERY_LONG))
    assert sum(result.usage.preemptions for result in results) > 3
    assert offloaded(runtime).fetched_pages > 20


def test_what_is_not_worth_fetching_is_computed(
    make_runtime: MakeRuntime, right: list[tuple[int, ...]]
) -> None:
    runtime = squeezed(make_runtime, "host:32MiB")
    reuse = runtime._worker.engine.memory.reuse
    assert reuse is not None
    reuse.cost.fetched(nbytes=1, seconds=3600.0)
    reuse.cost.computed(tokens=64, context=64, seconds=0.001)
    assert tokens(runtime.generate(prompts(60, 1), LONG)) == right
    assert offloaded(runtime).saved_pages == 0


def test_who_is_preempted_can_be_made_to_compute_again_and_nobody_else(
    make_runtime: MakeRuntime, tmp_path: Path
) -> None:
    apart = [[n] * 120 for n in range(12)]
    cold = make_runtime(prefix_cache=False)
    right = tokens(cold.generate(apart, VERY_LONG))
    runtime = squeezed(make_runtime, "host:64MiB", preemption="recompute", max_running=16)
    results = runtime.generate(apart, VERY_LONG)
    assert tokens(results) == right
    assert sum(result.usage.preemptions for result in results) > 3
    assert offloaded(runtime).fetched_pages == 0
    assert runtime.generate([apart[0]], GREEDY)[0].usage.cached_tokens == 7 * PAGE
    assert offloaded(runtime).fetched_pages == 7, "it was never preempted"
    runtime.save_cache(tmp_path)
    other = make_runtime(preemption="recompute")
    other.load_cache(tmp_path)
    assert other.generate([apart[0]], GREEDY)[0].usage.cached_tokens == 7 * PAGE


@pytest.mark.promise("P13")
@pytest.mark.parametrize("tiers", TIERS)
def test_an_abort_while_pages_come_back_leaves_nothing(
    tiers: str, make_runtime: MakeRuntime, break_device: Break, tmp_path: Path
) -> None:
    break_device(lambda device: Chaos(device, seed=5))
    runtime = squeezed(make_runtime, tiers.format(tmp_path), preemption="move")
    rng = random.Random(0)
    for _ in range(30):
        streams = [runtime.stream(prompt, LONG) for prompt in prompts(6, rng.random())]  # type: ignore[arg-type]
        streams[0].wait()
        for stream in streams:
            stream.close()
    assert offloaded(runtime).fetched_pages > 0
    result = runtime.generate([STEMS[0]], GREEDY)[0]
    assert result.error is None
    assert runtime.stats().cache.used_pages == 0
    until(lambda: offloaded(runtime).host.pinned == 0)


def test_pages_of_those_that_wait_are_brought_from_disk_to_host_memory(
    make_runtime: MakeRuntime, tmp_path: Path
) -> None:
    first = make_runtime(offload=f"disk:{tmp_path}:64MiB", offload_write="through")
    right = tokens(first.generate([STEMS[0]], GREEDY))
    first.close()
    runtime = make_runtime(
        offload=f"host:16MiB,disk:{tmp_path}:64MiB", preemption="move", max_running=1
    )
    long = runtime.stream(STEMS[1], SamplingParams(max_tokens=300, ignore_eos=True))
    next(iter(long))
    waiting = runtime.stream(STEMS[0], GREEDY)
    until(lambda: offloaded(runtime).host.pages == 9)
    assert runtime.busy
    long.close()
    result = waiting.wait()
    assert result.usage.cached_tokens == 9 * PAGE
    assert [result.token_ids] == right


@pytest.mark.promise("P30")
def test_what_is_private_goes_to_no_tier(
    make_runtime: MakeRuntime,
    right: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Not even when it is preempted."""
    monkeypatch.setattr("kvrt.sched.room.LOOKAHEAD_TOKENS", 0)
    runtime = squeezed(make_runtime, f"host:64MiB,disk:{tmp_path}:64MiB", max_running=16)
    streams = [runtime.stream(prompt, LONG, private=True) for prompt in prompts(16, 1)]
    results = [stream.wait() for stream in streams]
    assert tokens(results) == right[:16]
    assert sum(result.usage.preemptions for result in results) > 0
    assert offloaded(runtime).saved_pages == 0
    assert runtime.save_cache(tmp_path / "saved") == 0
    assert runtime.cache_events() == ()
