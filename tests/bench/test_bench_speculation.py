"""Speculation by prompt lookup: tokens per second with it over those without, and the same text.

    pytest tests/bench/test_bench_speculation.py --benchmark-enable --benchmark-only

By the bundled model, which was trained, so that its text is not noise; but it has 3.8 million
parameters, and goes round in circles sooner than models of useful size do. The repeating prompts
are functions of its held-out text, each followed by its own beginning, as in editing code, answered
greedily. The others are pieces of the same text, answered by drawing tokens at temperature 1, as
the model's author recommends.

Each answer is made in turn with and without, and of each the fastest round counts, so that other
work on the machine disturbs both alike. Prompts are not timed.
"""

import re
from collections.abc import Iterator
from importlib.resources import files

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

pytestmark = pytest.mark.extra

NEW, DRAFTS, ROUNDS = 128, 10, 5
HELDOUT = files("kvrt.model.bundled").joinpath("tiny/heldout.txt").read_text(encoding="utf-8")
FUNCTION = re.compile(r"^    def [^\n]*:\n(?: {8}[^\n]*\n|\n)+", re.MULTILINE)


def repeating() -> list[str]:
    """Functions of 300 to 900 characters, and once more their first quarter."""
    functions = [f for f in FUNCTION.findall(HELDOUT) if 300 < len(f) < 900]
    return [f"{function}\n{function[: len(function) // 4]}" for function in functions[:8]]


def fresh() -> list[str]:
    """700 characters from within documents."""
    documents = [d for d in HELDOUT.split("<|endoftext|>") if len(d) > 1200]
    return [document[200:900] for document in documents[:8]]


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with Runtime("tiny", backend="cpu", memory_limit="512MiB") as runtime:
        yield runtime


def seconds(
    runtime: Runtime, prompts: list[str], temperature: float, drafts: int
) -> tuple[float, list[tuple[int, ...]]]:
    """From the first token to the last of all, and what was said."""
    params = [
        SamplingParams(
            max_tokens=NEW, ignore_eos=True, temperature=temperature, seed=n, speculate=drafts
        )
        for n in range(len(prompts))
    ]
    results = runtime.generate(prompts, params)
    last = max(r.timings.total for r in results)
    return last - max(r.timings.first_token for r in results), [r.token_ids for r in results]


@pytest.mark.benchmark(group="speculation: times the tokens per second without it, tiny")
@pytest.mark.parametrize("together", [1, 8])
@pytest.mark.parametrize("kind", ["repeating", "fresh"])
def test_prompt_lookup(
    benchmark: BenchmarkFixture, runtime: Runtime, kind: str, together: int
) -> None:
    prompts, temperature = (repeating(), 0.0) if kind == "repeating" else (fresh(), 1.0)
    groups = [prompts[at : at + together] for at in range(0, len(prompts), together)]
    best: dict[tuple[int, int], float] = {}

    def run() -> None:
        for number, group in enumerate(groups):
            said = []
            for drafts in (0, DRAFTS):
                spent, text = seconds(runtime, group, temperature, drafts)
                best[number, drafts] = min(spent, best.get((number, drafts), spent))
                said.append(text)
            assert said[0] == said[1], "the same text"

    run()
    best.clear()
    before = runtime.stats().speculation
    benchmark.pedantic(run, rounds=ROUNDS)
    after = runtime.stats().speculation
    plain, drafted = (sum(best[n, d] for n in range(len(groups))) for d in (0, DRAFTS))
    benchmark.extra_info.update(
        times=round(plain / drafted, 2),
        tokens_per_s=round((NEW - 1) * len(prompts) / drafted),
        drafted=(after.drafted_tokens - before.drafted_tokens) // ROUNDS,
        accepted=(after.accepted_tokens - before.accepted_tokens) // ROUNDS,
    )
