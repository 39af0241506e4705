"""What `kvrt bench` measures: synthetic prompts through a runtime, and the clock."""

import random
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import kvrt
from kvrt.outputs import Result
from kvrt.sampling import SamplingParams
from kvrt_cli.progress import BenchBar

if TYPE_CHECKING:
    from kvrt.runtime import Runtime

SEED = 20240817


@dataclass(frozen=True, slots=True)
class Workload:
    """One test.

    Args:
        prompt: tokens of each prompt; 0: one token, which is not counted.
        answer: tokens of each answer; 0: the first new token ends it, and is not counted.
        sequences: so many at a time.
    """

    prompt: int
    answer: int
    sequences: int

    @property
    def name(self) -> str:
        parts = [f"pp{self.prompt}"] * bool(self.prompt) + [f"tg{self.answer}"] * bool(self.answer)
        return "+".join(parts)

    def prompts(self, vocab: int) -> list[list[int]]:
        """The same token ids every time, different ones for each sequence."""
        rng = random.Random(SEED)
        return [rng.choices(range(vocab), k=self.prompt or 1) for _ in range(self.sequences)]

    @property
    def params(self) -> SamplingParams:
        # The first token of a tg test comes with its prompt; the timed ones come after it.
        count = self.answer + (0 if self.prompt else 1) if self.answer else 1
        return SamplingParams(max_tokens=count, ignore_eos=True)

    def rate(self, results: list[Result], seconds: float) -> float:
        """Tokens per second of one run that took `seconds` from the first submission on.

        A tg test adds up the sequences' own rates between their first and last token: they do not
        all begin with the same step.
        """
        if self.prompt:
            return (self.prompt + self.answer) * self.sequences / seconds
        return sum(self.answer / (r.timings.total - r.timings.first_token) for r in results)


@dataclass(frozen=True, slots=True)
class Row:
    """A test's result, with what it was measured on.

    Args:
        columns: what identifies the row, by name.
        samples: tokens per second of each repetition.
    """

    columns: dict[str, Any]
    samples: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.samples)

    @property
    def deviation(self) -> float:
        """The sample standard deviation; 0 for a single sample."""
        return statistics.stdev(self.samples) if len(self.samples) > 1 else 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.samples)


def measure(
    runtime: "Runtime",
    work: Workload,
    repetitions: int,
    bar: BenchBar,
    *,
    warmup: bool,
) -> Row:
    """Run a test `repetitions` times, after one run that does not count if `warmup`.

    Raises:
        RequestError: prompt and answer are longer than the context.
        CapacityError: they do not fit in the memory limit.
    """
    prompts, params = work.prompts(runtime.model.spec.vocab), work.params
    samples = []
    preemptions = cached = 0
    for run in range(repetitions + warmup):
        bar.begin(work.name)
        started = time.perf_counter()
        results = runtime.generate(prompts, params)
        seconds = time.perf_counter() - started
        bar.end()
        for result in results:
            if result.error is not None:
                raise result.error
        preemptions += sum(result.usage.preemptions for result in results)
        if run >= warmup:
            cached += sum(result.usage.cached_tokens for result in results)
            samples.append(work.rate(results, seconds))
    return Row(
        _columns(runtime, work) | {"preemptions": preemptions, "cached_tokens": cached},
        tuple(samples),
    )


def _columns(runtime: "Runtime", work: Workload) -> dict[str, Any]:
    import torch

    config, model, info = runtime.config, runtime.model, runtime.device_info
    stats = runtime.stats()
    return {
        "build": f"kvrt {kvrt.__version__}, torch {torch.__version__}",
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": model.name,
        "architecture": model.spec.architecture,
        "weights": config.load_format,
        "weight_bytes": stats.weight_bytes,
        "backend": info.backend,
        "device": info.name,
        "arch": info.arch,
        "threads": config.threads or "auto",
        "dtype": model.dtype,
        "quantize": config.quantize or "none",
        "activations": config.activations,
        "kv_dtype": runtime.cache.layouts[0].format,
        "page_size": config.page_size,
        "max_batch_tokens": config.max_batch_tokens,
        "prefix_cache": config.prefix_cache,
        "offload": config.offload or "none",
        "preemption": config.preemption,
        "speculate": config.speculate or "none",
        "batch": work.sequences,
        "n_prompt": work.prompt,
        "n_gen": work.answer,
        "test": work.name,
        "kv_peak_bytes": stats.cache.peak_mapped_bytes,
    }
