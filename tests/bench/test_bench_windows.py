"""What keys and values take at 32,768 tokens where layers have windows, and what a token costs.

    ci/bench -k windows

Two shapes: Mistral-7B-v0.1's, and Gemma 3 4B's as a Qwen 3. What keys and values depend on is as it
is there (layers, heads of keys and values, their width, windows), and all else as small as it may
be, so that a step is little more than attention. Each is measured with its windows and, as what it
would take without them, with all its layers full.

To fill the context costs minutes of arithmetic that nobody looks at, so attention over prompts is
left out: their keys and values are stored, and are not what they would be. Decoding is complete.

Bytes are the system's: what is resident of the cache's addresses, by ``/proc/self/smaps``. Nothing
is kept for other requests. ``times_less`` is without windows over with them; at least 7 and 5 are
wanted.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.spi import Device
from tests.runtime.conftest import Break, break_device
from tests.spans import Answer, Params, Spans

__all__ = ["break_device"]

pytestmark = [pytest.mark.extra, pytest.mark.timeout(900)]  # only `make bench` runs them

CONTEXT, STEPS = 32_768, 96
ENDLESS = SamplingParams(max_tokens=4096, ignore_eos=True)
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "vocab_size": 512,
    "max_position_embeddings": 2 * CONTEXT,
    "rms_norm_eps": 1e-6,
    "torch_dtype": "bfloat16",
}
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "num_hidden_layers": 32,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
GEMMA_3_4B = {
    "architectures": ["Qwen3ForCausalLM"],
    "num_hidden_layers": 34,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 256,
}
SIX = [*["sliding_attention"] * 5, "full_attention"]
SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "Mistral-7B-v0.1": {
        "windows": MISTRAL_7B | {"sliding_window": 4096},
        "full": MISTRAL_7B | {"sliding_window": None},
    },
    "Gemma-3-4B": {
        "windows": GEMMA_3_4B
        | {"use_sliding_window": True, "sliding_window": 1024, "layer_types": (SIX * 6)[:34]},
        "full": GEMMA_3_4B,
    },
}

Step = Callable[[], None]


class Hurried(Spans):
    """A device whose attention over more than one token computes nothing. Notes what addresses the
    cache takes."""

    def around(
        self, name: str, call: Callable[Params, Answer], *args: Params.args, **kwargs: Params.kwargs
    ) -> Answer:
        if name == "attention.run":
            _, _, q, out, *_ = args
            if len(q) > 1:
                return out.zero_()
        return super().around(name, call, *args, **kwargs)


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one model, in one run.

    Args:
        held: bytes of keys and values, and of chunks that wait for some.
        peak: the most that was mapped, while the prompt was stored.
        step: median seconds of a decoded token.
    """

    held: int
    peak: int
    step: float


def measure(
    folder: Path, config: dict[str, Any], break_device: Break, decode: Callable[[Step], None]
) -> Measured:
    opened: list[Hurried] = []
    seconds: list[float] = []

    def hurried(device: Device) -> Device:
        opened.append(Hurried(device))
        return opened[-1]

    break_device(hurried)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMALL | config))
    options = {"load_format": "dummy", "backend": "cpu", "memory_limit": "6GiB"}
    options |= {"prefix_cache": False, "keep_warm": 0}
    prompt = [n % 500 for n in range(CONTEXT - STEPS)]
    with Runtime(folder, **options) as runtime, runtime.stream(prompt, ENDLESS) as answer:  # type: ignore[arg-type]

        def step() -> None:
            begin = time.perf_counter()
            next(answer)
            seconds.append(time.perf_counter() - begin)

        next(answer)
        decode(step)
        resident, counted = sum(opened[0].resident()), runtime.stats().cache
    assert abs(resident - counted.mapped_bytes) < 8 << 20, "what it says of itself is not so"
    return Measured(
        resident + counted.pooled_bytes, counted.peak_mapped_bytes, statistics.median(seconds)
    )


@pytest.mark.benchmark(group=f"windows: a token after {CONTEXT:,}")
@pytest.mark.parametrize("shape", SHAPES)
def test_windows(
    benchmark: BenchmarkFixture, shape: str, break_device: Break, tmp_path: Path
) -> None:
    def plainly(step: Step) -> None:
        for _ in range(STEPS):
            step()

    def benchmarked(step: Step) -> None:
        benchmark.pedantic(step, rounds=STEPS)

    full = measure(tmp_path / "full", SHAPES[shape]["full"], break_device, plainly)
    windows = measure(tmp_path / "windows", SHAPES[shape]["windows"], break_device, benchmarked)
    benchmark.extra_info.update(
        MiB=windows.held >> 20,
        MiB_at_most_while_stored=windows.peak >> 20,
        MiB_without_windows=full.held >> 20,
        times_less=round(full.held / windows.held, 2),
        time_over_that_without_windows=round(windows.step / full.step, 3),
    )
