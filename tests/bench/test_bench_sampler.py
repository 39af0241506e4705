"""What choosing the next tokens costs, beside the usual way: sorting whole rows.

pytest tests/bench/test_bench_sampler.py --benchmark-enable --benchmark-group-by=group

16 rows of the vocabularies of SmolLM2 and of Qwen3, with one thread, as beside kernels. In each row
200 tokens stand out, as after text, and the others are noise.
"""

from collections.abc import Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from kvrt.engine.sampler import Choice, Scores
from kvrt.sampling import SamplingParams

ROWS = 16
WAYS = {
    "temperature": {"temperature": 0.8},
    "top-p": {"temperature": 0.8, "top_p": 0.95},
    "top-k, top-p": {"temperature": 0.8, "top_k": 40, "top_p": 0.95},
}

pytestmark = [
    pytest.mark.parametrize("vocabulary", [49_152, 151_936]),
    pytest.mark.parametrize("way", WAYS),
]


@pytest.fixture
def logits(vocabulary: int) -> torch.Tensor:
    torch.manual_seed(0)
    logits = 2 * torch.randn(ROWS, vocabulary)
    logits[:, :200] += torch.linspace(20, 6, 200)
    return logits


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_sampler(
    way: str, vocabulary: int, logits: torch.Tensor, benchmark: BenchmarkFixture
) -> None:
    benchmark.group = f"choose {ROWS} of {vocabulary} tokens, {way}"
    params = SamplingParams(**WAYS[way])  # type: ignore[arg-type]
    choices = [Choice(params, seed, [], []) for seed in range(ROWS)]

    def choose() -> list[int]:
        scores = Scores(logits)
        return [scores.choose(at, choice).token_id for at, choice in enumerate(choices)]

    assert max(benchmark(choose)) < vocabulary


def test_rows_sorted_by_torch(
    way: str, vocabulary: int, logits: torch.Tensor, benchmark: BenchmarkFixture
) -> None:
    benchmark.group = f"choose {ROWS} of {vocabulary} tokens, {way}"
    params = SamplingParams(**WAYS[way])  # type: ignore[arg-type]

    def choose() -> torch.Tensor:
        scores = logits / params.temperature
        if params.top_k:
            least = scores.topk(params.top_k).values[:, -1:]
            scores = scores.masked_fill(scores < least, -torch.inf)
        if params.top_p < 1.0:
            ascending, order = scores.sort()
            gone = ascending.softmax(-1).cumsum(-1) <= 1 - params.top_p
            scores = scores.masked_fill(gone.scatter(1, order, gone), -torch.inf)
        return torch.multinomial(scores.softmax(-1), 1)

    assert int(benchmark(choose).max()) < vocabulary
