"""What an engine does while somebody watches: its steps, its requests, and its memory."""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from kvrt.engine.events import (
    Event,
    RequestFetched,
    RequestFetching,
    RequestFinished,
    RequestPreempted,
    RequestQueued,
    RequestResumed,
    RequestStarted,
    StepPhases,
)
from kvrt.errors import KvrtError
from kvrt.outputs import Result, Timings, Usage
from kvrt.runtime import Runtime

MOST = 200_000
"""Steps, at most, and as many changes of requests: some 500 MB in the trace's file."""

COUNTED_S = 0.001
"""Where the memory stands is looked at no more often than that."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A request's end, without what was asked and said.

    Args:
        how: its finish reason.
    """

    request_id: str
    how: str
    usage: Usage
    timings: Timings

    @classmethod
    def of(cls, result: Result) -> "Ended":
        how = "error" if result.error is not None else result.finish_reason
        return cls(result.request_id, how, result.usage, result.timings)


Happened = (
    RequestQueued
    | RequestStarted
    | RequestPreempted
    | RequestResumed
    | RequestFetching
    | RequestFetched
    | Ended
)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the KV memory stands, and the queue.

    Args:
        at: seconds, by `time.perf_counter`.
        pinned_pages: that pins keep.
        held_pages: that sequences hold, beside those.
        cached_pages: that are kept for those who begin with the same tokens.
        mapped_bytes: of physical memory that is mapped.
        pooled_bytes: that is held and not mapped.
        running: sequences that run.
        waiting: sequences that wait.
    """

    at: float
    pinned_pages: int
    held_pages: int
    cached_pages: int
    mapped_bytes: int
    pooled_bytes: int
    running: int
    waiting: int


@dataclass(slots=True)
class Recording:
    """What was seen from `began` to `ended`, in seconds by `time.perf_counter`.

    Args:
        title: the model, and what computes it.
        steps: in their order.
        happened: when, and what became of requests.
        standings: of the memory.
        lost: what came when there was no more room.
    """

    title: str
    began: float
    ended: float
    steps: list[StepPhases] = field(default_factory=list)
    happened: list[tuple[float, Happened]] = field(default_factory=list)
    standings: list[Standing] = field(default_factory=list)
    lost: int = 0


class Recorder:
    """Watches a runtime from `with` to its end; what it saw is `recording` then.

    The engine's thread tells it, and waits for it: some microseconds a step. Nothing of a request's
    text is kept.

    Args:
        runtime: that is watched.
        most: steps, at most, and changes of requests. What comes then is counted.
    """

    def __init__(self, runtime: Runtime, most: int = MOST) -> None:
        self._runtime = runtime
        self._most = most
        self._counted = 0.0
        model, info = runtime.model.name, runtime.device_info
        now = time.perf_counter()
        self.recording = Recording(f"{model} on {info.backend}:{info.index} {info.name}", now, now)

    def __enter__(self) -> Self:
        self.recording.began = time.perf_counter()
        self._runtime.add_observer(self._observe, phases=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(KvrtError):  # it has ended
            self._runtime.finish_step()
        self._runtime.remove_observer(self._observe)
        self.recording.ended = time.perf_counter()

    def _observe(self, event: Event) -> None:
        now, recording = time.perf_counter(), self.recording
        match event:
            case StepPhases():
                if len(recording.steps) >= self._most:
                    recording.lost += 1
                    return
                recording.steps.append(event)
                if now - self._counted >= COUNTED_S:
                    self._counted = now
                    recording.standings.append(self._standing(now, event))
            case RequestFinished():
                self._add(now, Ended.of(event.result))
            case (
                RequestQueued()
                | RequestStarted()
                | RequestPreempted()
                | RequestResumed()
                | RequestFetching()
                | RequestFetched()
            ):
                self._add(now, event)

    def _add(self, now: float, happened: Happened) -> None:
        if len(self.recording.happened) >= self._most:
            self.recording.lost += 1
        else:
            self.recording.happened.append((now, happened))

    def _standing(self, now: float, step: StepPhases) -> Standing:
        stats, pinned = self._runtime.cache.stats(), self._runtime.pinned_pages
        return Standing(
            now,
            pinned,
            stats.used_pages - pinned,
            stats.cached_pages,
            stats.mapped_bytes,
            stats.pooled_bytes,
            step.running,
            step.waiting,
        )
