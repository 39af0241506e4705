"""How near to the machine's limits a model of the SmolLM2-135M shape comes, on the CPU.

    ci/limits [--rounds N] [FORMAT ...]

For each format of weights: one stream beside the read bandwidth, prompt processing beside the peak
of the instructions that multiply with such weights, and 16 requests beside one. Each round measures
the machine right before and right after what is compared with it, and takes the better of the two;
printed are the medians of all rounds. About a minute on two cores.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, get_args

import torch
from kvrt_kernels import isa, limits

from kvrt.model.packed.quantize import Quantize
from kvrt.model.spec import ModelSpec
from kvrt.outputs import Result
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

from .test_bench_model import GREEDY, NEW, ONE, SIXTEEN, SMOLLM2_135M, decode_rate

PROMPT = [[7 * i % 49000 for i in range(512)]]
FIRST = SamplingParams(max_tokens=1, ignore_eos=True)


class Goal(NamedTuple):
    """Parts of the machine's limits; None: there is no goal.

    Args:
        read: of the read bandwidth, by one stream.
        peak: of the peak of the products' instructions, by a prompt of 512 tokens.
        requests: how many times as fast 16 requests are as one.
    """

    read: float
    peak: float = 0.75
    requests: float | None = None


class Format(NamedTuple):
    """A kind of weights.

    Args:
        options: of the runtime.
        dtype: whose instructions multiply with it.
    """

    options: dict[str, Any]
    dtype: torch.dtype
    goal: Goal


FORMATS = {
    "float32": Format({"dtype": "float32"}, torch.float32, Goal(0.9)),
    "bfloat16": Format({"dtype": "bfloat16"}, torch.bfloat16, Goal(0.9, requests=5.0)),
} | {
    name: Format({"quantize": name}, torch.uint8, Goal(0.8 if name == "int8" else 0.7))
    for name in get_args(Quantize)
}


class Line(NamedTuple):
    """What is printed of a measurement.

    Args:
        part: of the limit.
    """

    what: str
    speed: str
    limit: str
    part: float
    goal: float | None

    def __str__(self) -> str:
        goal = "" if self.goal is None else f"{self.goal:.2f}"
        return f"| {self.what} | {self.speed} | {self.limit} | {self.part:.2f} | {goal} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="ci/limits", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    unknown = set(asked.formats) - set(FORMATS)
    if unknown:
        parser.error(f"no formats {', '.join(sorted(unknown))}: there are {', '.join(FORMATS)}")
    print(f"{isa()} kernels, {torch.get_num_threads()} threads, medians of {asked.rounds} rounds\n")
    print("| what | measured | limit | part | goal |")
    print("| --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SMOLLM2_135M))
        for name in asked.formats or FORMATS:
            for line in measured(name, FORMATS[name], folder, asked.rounds):
                print(line, flush=True)


def measured(name: str, format: Format, shape: str, rounds: int) -> Iterator[Line]:
    options = {"load_format": "dummy", "backend": "cpu", "prefix_cache": False} | format.options
    with Runtime(shape, **options) as runtime:
        for prompts in (ONE, SIXTEEN, PROMPT):
            runtime.generate(prompts, GREEDY)
        yield one_stream(name, format, runtime, rounds)
        yield prompt(name, format, runtime, rounds)
        yield sixteen(name, format, runtime, rounds)


def one_stream(name: str, format: Format, runtime: Runtime, rounds: int) -> Line:
    """A step reads all weights, and the keys and values of its context."""
    stats = runtime.stats().cache
    context = len(ONE[0]) + NEW / 2
    nbytes = runtime.model.weight_bytes + context * stats.page_bytes / runtime.config.page_size
    rates, reads = [], []
    for _ in range(rounds):
        before = limits.measure(passes=2).read_bytes_per_s
        rates.append(decode_rate(runtime.generate(ONE, GREEDY)[0]))
        reads.append(max(before, limits.measure(passes=2).read_bytes_per_s))
    parts = [rate * nbytes / read for rate, read in zip(rates, reads, strict=True)]
    return Line(
        f"{name}: one stream",
        f"{median(rates):.1f} tok/s",
        f"{median(reads) / 1e9:.1f} GB/s",
        median(parts),
        format.goal.read,
    )


def prompt(name: str, format: Format, runtime: Runtime, rounds: int) -> Line:
    tokens = len(PROMPT[0])
    needed = operations(runtime.model.spec, tokens)
    rates, peaks = [], []
    for _ in range(rounds):
        before = limits.peak(format.dtype, passes=2)
        rates.append(tokens / seconds(runtime, PROMPT, FIRST))
        peaks.append(max(before, limits.peak(format.dtype, passes=2)))
    parts = [rate / tokens * needed / peak for rate, peak in zip(rates, peaks, strict=True)]
    return Line(
        f"{name}: prompt of {tokens}",
        f"{median(rates):.0f} tok/s",
        f"{median(peaks) / 1e9:.0f} GOP/s",
        median(parts),
        format.goal.peak,
    )


def operations(spec: ModelSpec, tokens: int) -> int:
    """Of the products alone: of all tokens with a layer's matrices, of one with the head. What
    attention, norms and rounding take is a distance to the limit."""
    heads = spec.heads + 2 * spec.kv_heads
    layer = spec.hidden * ((heads + spec.heads) * spec.head_dim + 3 * spec.intermediate)
    return 2 * (tokens * len(spec.layers) * layer + spec.vocab * spec.hidden)


def sixteen(name: str, format: Format, runtime: Runtime, rounds: int) -> Line:
    """Prompts and answers together, as `test_sixteen_requests` counts them."""
    ones, all = [], []
    for _ in range(rounds):
        for rates, prompts in ((ones, ONE), (all, SIXTEEN)):
            begun = time.perf_counter()
            rates.append(tokens_of(runtime.generate(prompts, GREEDY)) / since(begun))
    parts = [many / one for many, one in zip(all, ones, strict=True)]
    return Line(
        f"{name}: 16 requests",
        f"{median(all):.0f} tok/s",
        f"{median(ones):.0f} tok/s for 1",
        median(parts),
        format.goal.requests,
    )


def tokens_of(results: list[Result]) -> int:
    return sum(r.usage.prompt_tokens + r.usage.completion_tokens for r in results)


def seconds(runtime: Runtime, prompts: list[list[int]], params: SamplingParams) -> float:
    begun = time.perf_counter()
    runtime.generate(prompts, params)
    return since(begun)


def since(begun: float) -> float:
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
