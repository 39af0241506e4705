"""Adapters: tokens per second of 16 requests over 8 of them, over those of the model as it is.

    pytest tests/bench/test_bench_adapters.py --benchmark-enable --benchmark-only

A SmolLM2-135M-shaped model with random weights in bfloat16, and adapters of rank 8, for queries and
values or for all matrices. Both ways take turns, and of each the round with the least processor
time counts: prompts of 64 tokens are timed by answers of one token, and decoding by what 33 take
longer.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from tests.model.adapters import save_adapter

from .test_bench_model import SMOLLM2_135M

pytestmark = pytest.mark.extra

ADAPTERS, REQUESTS, RANK, NEW, ROUNDS = 8, 16, 8, 33, 3
PROMPTS = [[(7 * n + i) % 49000 for i in range(64)] for n in range(REQUESTS)]
MODULES: Mapping[str, tuple[int, int]] = {
    "self_attn.q_proj": (576, 576),
    "self_attn.v_proj": (192, 576),
    "self_attn.k_proj": (192, 576),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (1536, 576),
    "mlp.up_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
}
"""Rows and columns of each."""


def save(folder: Path, modules: list[str], seed: int) -> Path:
    random = torch.Generator().manual_seed(seed)
    matrices = {}
    for layer in range(SMOLLM2_135M["num_hidden_layers"]):  # type: ignore[call-overload]
        for name in modules:
            out, width = MODULES[name]
            matrices[f"model.layers.{layer}.{name}"] = (
                torch.randn(RANK, width, generator=random) * 0.02,
                torch.randn(out, RANK, generator=random) * 0.02,
            )
    return save_adapter(folder, matrices, r=RANK, lora_alpha=16)


def seconds(runtime: Runtime, names: list[str | None], new: int) -> float:
    """Of processor time."""
    params = SamplingParams(max_tokens=new, ignore_eos=True)
    begun = time.process_time()
    streams = [
        runtime.stream(prompt, params, adapter=name)
        for prompt, name in zip(PROMPTS, names, strict=True)
    ]
    for stream in streams:
        stream.wait()
    return time.process_time() - begun


@pytest.mark.benchmark(group="adapters: 16 requests over 8, times the model's own tokens/s")
@pytest.mark.parametrize("changed", ["queries and values", "all matrices"])
def test_sixteen_requests_over_eight_adapters(
    benchmark: BenchmarkFixture, tmp_path: Path, changed: str
) -> None:
    modules = [*MODULES] if changed == "all matrices" else [*MODULES][:2]
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2_135M))
    best: dict[tuple[bool, int], float] = {}
    with Runtime(tmp_path, load_format="dummy", backend="cpu", prefix_cache=False) as runtime:
        for n in range(ADAPTERS):
            runtime.load_adapter(f"a{n}", save(tmp_path / f"a{n}", modules, n))
        named: list[str | None] = [f"a{n % ADAPTERS}" for n in range(REQUESTS)]

        def run() -> None:
            for adapted in (False, True):
                for new in (1, NEW):
                    spent = seconds(runtime, named if adapted else [None] * REQUESTS, new)
                    best[adapted, new] = min(spent, best.get((adapted, new), spent))

        run()
        best.clear()
        benchmark.pedantic(run, rounds=ROUNDS)
    decode = [best[adapted, NEW] - best[adapted, 1] for adapted in (False, True)]
    benchmark.extra_info.update(
        prompts=round(best[False, 1] / best[True, 1], 2), decoding=round(decode[0] / decode[1], 2)
    )
