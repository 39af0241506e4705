"""What `kvrt tune` measures: a setting, by a run of the same requests."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kvrt.config import RuntimeConfig
from kvrt.errors import KvrtError
from kvrt.profiling.bottleneck import Goal
from kvrt.profiling.search import Setting, Unfit
from kvrt.profiling.slo import Objective
from kvrt_cli.tuning.requests import Load

if TYPE_CHECKING:
    from kvrt.outputs import Result
    from kvrt.runtime import Runtime

MOST_OPEN = 4
"""Runtimes, at most, that are kept open between runs: settings are measured in turns."""

ROOM = 0.3
"""Of the memory that is left beside one runtime's weights: the weights of all others fit in it."""

PENALTY = 4
"""A setting that misses an objective by a factor is worth that factor less, to this power."""

UNFIT = "its answers are not those of the default: --allow-inexact allows that"


@dataclass(frozen=True, slots=True)
class Run:
    """The requests, once.

    Args:
        rate: tokens per second, of prompts and answers.
        times: seconds of each request: ``ttft``, ``tpot``, ``e2e``.
    """

    rate: float
    times: Mapping[str, Sequence[float]]

    def score(self, goal: Goal, slo: Sequence[Objective]) -> float:
        """More is better: tokens per second, or how often the median time fits in a second."""
        if goal == "throughput":
            score = self.rate
        else:
            score = 1.0 / statistics.median(self.times["ttft" if goal == "ttft" else "e2e"])
        return score / self.excess(slo) ** PENALTY

    def excess(self, slo: Sequence[Objective]) -> float:
        """How many times its bound the objective that is missed most is; 1: all are kept."""
        return max(1.0, *(each.excess(self.times) for each in slo)) if slo else 1.0


class Trials:
    """Runs of settings, each by a runtime that stays open while there is room for it.

    Args:
        config: all that is not searched.
        knobs: the fields of `RuntimeConfig` that are.
        load: makes the requests of a runtime.
        exact: refuse settings whose answers differ from those of the first one, where the device
            computes the same bits whatever the batch is.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        knobs: Sequence[str],
        load: "Callable[[Runtime], Load]",
        *,
        exact: bool,
    ) -> None:
        self._config = config
        self._knobs = knobs
        self._load = load
        self._exact = exact
        self._open: dict[Setting, Runtime] = {}
        self._most = 1
        self._answers: list[tuple[int, ...]] | None = None
        self.holds = False
        """Whether answers are compared."""
        self.runs: dict[Setting, list[Run]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for runtime in self._open.values():
            runtime.close()

    def config(self, setting: Setting) -> RuntimeConfig:
        """All options of a setting."""
        return replace(self._config, **dict(zip(self._knobs, setting, strict=True)))

    def runtime(self, setting: Setting) -> "Runtime":
        """An open one, warmed up by a run.

        Raises:
            Unfit: the setting cannot be used.
        """
        found = self._open.pop(setting, None)
        if found is None:
            while len(self._open) >= self._most:
                self._open.pop(next(iter(self._open))).close()
            found = self._opened(setting)
        self._open[setting] = found  # the last to be closed
        return found

    def _opened(self, setting: Setting) -> "Runtime":
        from kvrt.runtime import Runtime
        from kvrt.spi import Capability

        first = self._answers is None
        try:
            runtime = Runtime(config=self.config(setting))
        except KvrtError as error:
            if first:
                raise
            raise Unfit(str(error)) from None
        try:
            results = self._answer(runtime, setting)
        except BaseException:
            runtime.close()
            raise
        answers = [result.token_ids for result in results]
        if self._answers is None:
            capabilities = runtime.device_info.capabilities
            self._answers = answers
            self.holds = self._exact and Capability.BATCH_INVARIANT in capabilities
            self._make_room(runtime)
        elif self.holds and answers != self._answers:
            runtime.close()
            raise Unfit(UNFIT)
        return runtime

    def _make_room(self, runtime: "Runtime") -> None:
        """Find out how many runtimes may be open at a time, each with a part of the KV memory."""
        weights, cache = runtime.model.weight_bytes, runtime.cache.stats()
        need = 2 * max(cache.peak_mapped_bytes, runtime.cache.min_bytes)
        for most in range(MOST_OPEN, 1, -1):
            part = cache.limit_bytes // most
            if (most - 1) * weights <= ROOM * cache.limit_bytes and part >= need:
                self._most = most
                self._config = replace(self._config, memory_limit=weights + part)
                runtime.set_memory_limit(weights + part)
                return

    def _answer(self, runtime: "Runtime", setting: Setting) -> "list[Result]":
        load = self._load(runtime)
        results = runtime.generate(load.prompts, load.params)
        for result in results:
            if result.error is not None:
                if self._answers is None:
                    raise result.error
                raise Unfit(f"a request failed: {result.error}")
        return results

    def measure(self, setting: Setting) -> Run:
        """A run.

        Raises:
            Unfit: the setting cannot be used.
            KvrtError: the first one cannot.
        """
        runtime = self.runtime(setting)
        started = time.perf_counter()
        results = self._answer(runtime, setting)
        seconds = time.perf_counter() - started
        usages = [result.usage for result in results]
        run = Run(
            sum(usage.prompt_tokens + usage.completion_tokens for usage in usages) / seconds,
            {
                "ttft": [result.timings.first_token for result in results],
                "tpot": [pace for result in results if (pace := _pace(result)) is not None],
                "e2e": [result.timings.total for result in results],
            },
        )
        self.runs.setdefault(setting, []).append(run)
        return run


def _pace(result: "Result") -> float | None:
    """Seconds of each token after the first."""
    later = result.usage.completion_tokens - 1
    if later < 1:
        return None
    return (result.timings.total - result.timings.first_token) / later
