"""Greedy output has the same bytes however it came about (promise P15)."""

import random

import pytest

from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

from .conftest import MakeRuntime

LENGTHS = (1, 2, 15, 16, 17, 33, 64, 77, 130)
SHORT = SamplingParams(max_tokens=24, ignore_eos=True)
LONG = SamplingParams(max_tokens=100, ignore_eos=True)
CHUNK = 2 << 20


def prompt(number: int) -> list[int]:
    rng = random.Random(number)
    return [rng.randrange(199) for _ in range(LENGTHS[number % len(LENGTHS)] + number // 9)]


PROMPTS = [prompt(number) for number in range(32)]


def answers(
    runtime: Runtime, numbers: list[int], params: SamplingParams = SHORT
) -> list[tuple[int, ...]]:
    results = runtime.generate([PROMPTS[n] for n in numbers], params)
    assert all(result.error is None for result in results)
    return [result.token_ids for result in results]


@pytest.fixture(scope="module")
def alone(tiny_lm: object) -> list[tuple[int, ...]]:
    with Runtime(tiny_lm, backend="cpu", load_format="dummy", seed=1) as runtime:  # type: ignore[arg-type]
        return [answers(runtime, [n], LONG)[0] for n in range(len(PROMPTS))]


@pytest.mark.promise("P15")
@pytest.mark.parametrize("chunk", [1, 3, 16, 50, 512])
def test_whatever_the_batch_and_the_chunks(
    chunk: int, make_runtime: MakeRuntime, alone: list[tuple[int, ...]]
) -> None:
    runtime = make_runtime(max_batch_tokens=chunk)
    rng = random.Random(chunk)
    for _ in range(6):
        numbers = rng.sample(range(len(PROMPTS)), rng.randint(1, 16))
        assert answers(runtime, numbers) == [alone[n][:24] for n in numbers]


@pytest.mark.promise("P15")
@pytest.mark.parametrize("page_size", [8, 16, 64])
@pytest.mark.parametrize("chunk", [7, 64])
def test_when_preempted_for_want_of_pages(
    page_size: int, chunk: int, make_runtime: MakeRuntime, alone: list[tuple[int, ...]]
) -> None:
    runtime = make_runtime(max_batch_tokens=chunk, page_size=page_size)
    # Room for 384 tokens, where the load would need three times as many: the pool stays full.
    runtime.set_memory_limit(runtime.model.weight_bytes + 3 * CHUNK)
    rng = random.Random(page_size)
    preemptions = 0
    for _ in range(2):
        numbers = rng.sample(range(len(PROMPTS)), 8)
        results = runtime.generate([PROMPTS[n] for n in numbers], LONG)
        assert [result.token_ids for result in results] == [alone[n] for n in numbers]
        preemptions += sum(result.usage.preemptions for result in results)
    assert preemptions > 0, "this test is about preemption, so some must happen"


@pytest.mark.promise("P15")
def test_whatever_the_number_of_threads(
    make_runtime: MakeRuntime, alone: list[tuple[int, ...]]
) -> None:
    runtime = make_runtime(threads=1)
    assert answers(runtime, list(range(16))) == [tokens[:24] for tokens in alone[:16]]


def test_siblings_of_a_fork_say_what_they_would_say_alone(make_runtime: MakeRuntime) -> None:
    def params(n: int, seed: int) -> SamplingParams:
        return SamplingParams(n=n, seed=seed, temperature=1.0, max_tokens=20, ignore_eos=True)

    runtime = make_runtime()
    forked = runtime.generate([PROMPTS[20]], params(4, 5))[0]
    assert len({c.token_ids for c in forked.completions}) == 4
    for i, completion in enumerate(forked.completions):
        assert (
            runtime.generate([PROMPTS[20]], params(1, 5 + i))[0].token_ids == completion.token_ids
        )
