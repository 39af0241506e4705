"""Speculation by a draft model a quarter as large: tokens per second over those without it.

    pytest tests/bench/test_bench_draft_model.py --benchmark-enable --benchmark-only

The text is the bundled model's. So that there is a model four times as large with the same text,
16 layers that add nothing are put behind its own four; and what drafts for that is the bundled
model with noise in its weights, which agrees with it on most tokens and not on all. Prompts are
pieces of held-out code, answered greedily and by drawing as the author recommends; the rounds with
and without take turns, of each the one with the least processor time counts, and kernels have one
thread. A second model that drafts has so much noise that it is of no use.
"""

import json
import shutil
import time
from importlib.resources import as_file, files
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from safetensors.torch import load_file, save_file

from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from tests.model.drafters import noisy_copy

from .test_bench_speculation import fresh

pytestmark = pytest.mark.extra

LAYERS, OWN = 20, 4
NEW, ROUNDS = 96, 3
NOISE = {"near": 0.05, "far": 1.0}
"""Of weights, by how much the model that drafts agrees: in standard deviations of each matrix."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A large model, and those that draft for it."""
    folder = tmp_path_factory.mktemp("models")
    with as_file(files("kvrt.model.bundled").joinpath("tiny")) as tiny:
        shutil.copytree(tiny, folder / "large")
        weights = load_file(tiny / "model.safetensors")
        config = json.loads((tiny / "config.json").read_text())
    large = dict(weights)
    for layer in range(OWN, LAYERS):
        for name, tensor in weights.items():
            if name.startswith("model.layers.0."):
                ends = name.endswith(("o_proj.weight", "down_proj.weight"))
                copied = torch.zeros_like(tensor) if ends else tensor.clone()
                large[name.replace("layers.0.", f"layers.{layer}.")] = copied
    save_file(large, folder / "large" / "model.safetensors", metadata={"format": "pt"})
    config["num_hidden_layers"] = LAYERS
    (folder / "large" / "config.json").write_text(json.dumps(config))
    noisy = {name: noisy_copy(folder / name, share) for name, share in NOISE.items()}
    return {"large": folder / "large", **noisy}


def seconds(
    runtime: Runtime, prompts: list[str], temperature: float, drafts: int
) -> tuple[float, list[tuple[int, ...]]]:
    """Of processor time, and what was said."""
    params = [
        SamplingParams(
            max_tokens=NEW, ignore_eos=True, temperature=temperature, seed=n, speculate=drafts
        )
        for n in range(len(prompts))
    ]
    begun = time.process_time()
    results = runtime.generate(prompts, params)
    return time.process_time() - begun, [result.token_ids for result in results]


@pytest.mark.benchmark(group="draft model a quarter as large: times the tokens/s without it")
@pytest.mark.parametrize("together", [1, 8])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("drafter", NOISE)
def test_a_draft_model(
    benchmark: BenchmarkFixture,
    models: dict[str, Path],
    drafter: str,
    temperature: float,
    together: int,
) -> None:
    prompts = fresh()
    groups = [prompts[at : at + together] for at in range(0, len(prompts), together)]
    best: dict[tuple[int, int], float] = {}
    with Runtime(
        models["large"], backend="cpu", memory_limit="512MiB", draft_model=models[drafter],
        threads=1,
    ) as runtime:  # fmt: skip

        def run() -> None:
            for number, group in enumerate(groups):
                said = []
                for drafts in (0, 8):
                    spent, text = seconds(runtime, group, temperature, drafts)
                    best[number, drafts] = min(spent, best.get((number, drafts), spent))
                    said.append(text)
                assert said[0] == said[1], "the same text"

        run()
        best.clear()
        before = runtime.stats().speculation
        benchmark.pedantic(run, rounds=ROUNDS)
        after = runtime.stats().speculation
    plain, drafted = (sum(best[n, d] for n in range(len(groups))) for d in (0, 8))
    benchmark.extra_info.update(
        times=round(plain / drafted, 2),
        drafted=(after.drafted_tokens - before.drafted_tokens) // ROUNDS,
        accepted=(after.accepted_tokens - before.accepted_tokens) // ROUNDS,
    )
