"""Beam search beside transformers', and beside as many sequences that do not search.

    pytest tests/bench/test_bench_beams.py --benchmark-enable --benchmark-only

A SmolLM2-135M-shaped model with random weights continues 512 tokens by 64, with four beams. All
three take turns in each round, and the ratios are medians of the rounds' own.
"""

import statistics
import time
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

from .test_bench_model import DTYPES, NEW, shape

__all__ = ["shape"]

pytestmark = [pytest.mark.extra, pytest.mark.timeout(1200)]  # only `make bench` runs them

BEAMS, ROUNDS = 4, 5
PROMPT = list(range(100, 612))


@pytest.mark.benchmark(group="beam search: 512 prompt + 64 new tokens, 4 beams")
@pytest.mark.parametrize("dtype", DTYPES)
def test_beams(benchmark: BenchmarkFixture, shape: Path, dtype: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(shape)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    prompt = torch.tensor([PROMPT])
    beams = SamplingParams(max_tokens=NEW, ignore_eos=True, beam_width=BEAMS)
    apart = SamplingParams(max_tokens=NEW, ignore_eos=True, n=BEAMS, temperature=1.0, seed=1)
    seconds: dict[str, list[float]] = {"beams": [], "apart": [], "transformers": []}

    def theirs() -> None:
        with torch.inference_mode():
            model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW,
                min_new_tokens=NEW, num_beams=BEAMS, do_sample=False, pad_token_id=0,
            )  # fmt: skip

    with Runtime(
        shape, load_format="dummy", dtype=dtype, backend="cpu", prefix_cache=False
    ) as runtime:
        ways = {
            "beams": lambda: runtime.generate([PROMPT], beams),
            "apart": lambda: runtime.generate([PROMPT], apart),
            "transformers": theirs,
        }

        def run() -> None:
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - start)

        run()
        for times in seconds.values():
            times.clear()
        benchmark.pedantic(run, rounds=ROUNDS)

    def ratio(over: str) -> float:
        pairs = zip(seconds[over], seconds["beams"], strict=True)
        return round(statistics.median(other / own for other, own in pairs), 2)

    benchmark.extra_info.update(
        beams_s=round(statistics.median(seconds["beams"]), 2),
        times_faster_than_transformers=ratio("transformers"),
        times_faster_than_sampling_as_many=ratio("apart"),
    )
