"""Whole models: a SmolLM2-135M-shaped one with random weights, beside transformers.

    pytest tests/bench/test_bench_model.py --benchmark-enable --benchmark-only

Decoding one token reads every weight once, so the limit of a single stream is the machine's read
bandwidth, measured in the same run, over the bytes of the weights.
"""

import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from kvrt.outputs import Result
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.spi import Measurable

pytestmark = pytest.mark.extra  # minutes, so only `make bench` runs them

SMOLLM2_135M = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
NEW = 64
GREEDY = SamplingParams(max_tokens=NEW, ignore_eos=True)
ONE = [list(range(100, 260))]
SIXTEEN = [[(7 * n + i) % 49000 for i in range(64 + 12 * n + 12 * (n > 11))] for n in range(16)]
DTYPES = ("float32", "bfloat16")


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    (folder / "config.json").write_text(json.dumps(SMOLLM2_135M))
    return folder


@pytest.fixture(params=DTYPES)
def runtime(request: pytest.FixtureRequest, shape: Path) -> Iterator[Runtime]:
    """One that reuses nothing: the prompts are the same in every round."""
    options = {"load_format": "dummy", "dtype": request.param, "backend": "cpu"}
    with Runtime(shape, **options, prefix_cache=False) as runtime:
        yield runtime


def decode_rate(result: Result) -> float:
    return (NEW - 1) / (result.timings.total - result.timings.first_token)


def read_bandwidth(runtime: Runtime) -> float:
    measurable = runtime.device.extension(Measurable)
    assert measurable is not None
    return measurable.measure().read_bytes_per_s


@pytest.mark.benchmark(group="model: one stream, 160 prompt + 64 new tokens")
def test_one_stream(benchmark: BenchmarkFixture, runtime: Runtime) -> None:
    rates: list[float] = []
    fractions: list[float] = []
    runtime.generate(ONE, GREEDY)

    def run() -> None:
        limit = read_bandwidth(runtime) / runtime.model.weight_bytes
        rates.append(decode_rate(runtime.generate(ONE, GREEDY)[0]))
        limit = max(limit, read_bandwidth(runtime) / runtime.model.weight_bytes)
        fractions.append(rates[-1] / limit)

    benchmark.pedantic(run, rounds=7)
    benchmark.extra_info.update(
        decode_tokens_per_s=round(statistics.median(rates), 1),
        fraction_of_read_bandwidth=round(statistics.median(fractions), 3),
    )


@pytest.mark.benchmark(group="model: a decode step of the bundled model, one thread")
def test_a_step_whose_kernels_take_the_lesser_part(benchmark: BenchmarkFixture) -> None:
    """Processor time of the whole process: it counts what the engine's own work costs."""
    tokens = 400
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    taken: list[float] = []
    with Runtime("tiny", backend="cpu", threads=1, prefix_cache=False) as runtime:
        runtime.generate("Once upon a time", params)

        def run() -> None:
            begun = time.process_time()
            runtime.generate("Once upon a time", params)
            taken.append((time.process_time() - begun) / tokens)

        benchmark.pedantic(run, rounds=9)
    benchmark.extra_info["processor us a step"] = f"{statistics.median(taken) * 1e6:.0f}"


@pytest.mark.benchmark(group="model: 16 requests of 64-256 prompt + 64 new tokens")
def test_sixteen_requests(benchmark: BenchmarkFixture, runtime: Runtime) -> None:
    ratios: list[float] = []
    rates: list[float] = []
    runtime.generate(SIXTEEN, GREEDY)

    def total_rate(prompts: list[list[int]]) -> float:
        start = time.perf_counter()
        results = runtime.generate(prompts, GREEDY)
        seconds = time.perf_counter() - start
        return sum(r.usage.prompt_tokens + r.usage.completion_tokens for r in results) / seconds

    def run() -> None:
        one = total_rate(ONE)
        rates.append(total_rate(SIXTEEN))
        ratios.append(rates[-1] / one)

    benchmark.pedantic(run, rounds=5)
    benchmark.extra_info.update(
        total_tokens_per_s=round(statistics.median(rates), 1),
        times_one_stream=round(statistics.median(ratios), 2),
    )


@pytest.mark.benchmark(group="model: one stream, 160 prompt + 64 new tokens")
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_stream_of_transformers(benchmark: BenchmarkFixture, shape: Path, dtype: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(shape)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    prompt = torch.tensor(ONE)
    rates: list[float] = []

    def generate(count: int) -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count,
                min_new_tokens=count, do_sample=False, pad_token_id=0,
            )  # fmt: skip
        return time.perf_counter() - start

    def run() -> None:
        rates.append((NEW - 1) / (generate(NEW) - generate(1)))

    generate(NEW)
    benchmark.pedantic(run, rounds=3)
    benchmark.extra_info.update(decode_tokens_per_s=round(statistics.median(rates), 1))
