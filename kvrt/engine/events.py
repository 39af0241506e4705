"""What an engine tells those who watch it: what becomes of requests, each step, and changes to
what is cached."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kvrt.outputs import Result

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that has just happened.

    Args:
        at: seconds since 1970, by the clock on the wall.
    """

    at: float = field(default_factory=time.time, kw_only=True)


@dataclass(frozen=True, slots=True)
class RequestQueued(Event):
    """A request has come.

    Args:
        request_id: as its result has it.
        metadata: what its caller gave with it.
        prompt_tokens: of its prompt.
    """

    request_id: str
    metadata: Any
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class RequestStarted(Event):
    """A request runs for the first time.

    Args:
        cached_tokens: of its prompt, whose pages were there.
    """

    request_id: str
    metadata: Any
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class RequestPreempted(Event):
    """A sequence of a request gave its pages to others, and waits again."""

    request_id: str
    metadata: Any


@dataclass(frozen=True, slots=True)
class RequestResumed(Event):
    """A sequence of a request that was preempted runs again.

    Args:
        cached_tokens: of it, whose pages were there.
    """

    request_id: str
    metadata: Any
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class RequestFetching(Event):
    """A sequence of a request has its turn, and waits for pages from outside the device first."""

    request_id: str
    metadata: Any


@dataclass(frozen=True, slots=True)
class RequestFetched(Event):
    """They came, or could not be had.

    Args:
        tokens: that need not be computed for it.
    """

    request_id: str
    metadata: Any
    tokens: int


@dataclass(frozen=True, slots=True)
class RequestFinished(Event):
    """A request has ended, in whatever way; its result tells which, and how long all took."""

    result: Result


@dataclass(frozen=True, slots=True)
class StepDone(Event):
    """The engine has taken a step in which something was computed.

    Args:
        number: of the step.
        seconds: it took, sampling included.
        tokens: computed in it.
        running: sequences that run.
        waiting: sequences that wait, for their turn or for pages from elsewhere.
    """

    number: int
    seconds: float
    tokens: int
    running: int
    waiting: int


class Span(NamedTuple):
    """Something that was done.

    Args:
        name: what.
        began: seconds, by `time.perf_counter`.
        ended: likewise.
        depth: 0: it follows what came before without a gap; else what it lies within is of a
            depth one less.
    """

    name: str
    began: float
    ended: float
    depth: int


@dataclass(frozen=True, slots=True)
class StepPhases(Event):
    """What the engine's thread has done in a step, also in one that computed nothing. Only while
    somebody wants to know; see `kvrt.Runtime.add_observer`.

    Args:
        number: of the step.
        spans: what was done, what ended first first.
        prompt_tokens: computed of prompts, and of what has to be computed again.
        answer_tokens: computed of answers, guessed ones included.
        context_tokens: of all sequences in it, whose keys and values it read.
        running: sequences that run.
        waiting: sequences that wait, for their turn or for pages from elsewhere.
    """

    number: int
    spans: tuple[Span, ...]
    prompt_tokens: int
    answer_tokens: int
    context_tokens: int
    running: int
    waiting: int


@dataclass(frozen=True, slots=True)
class CacheChanged(Event):
    """Pages can be reused, or not any more; `kvrt.Runtime.cache_events` has which.

    Args:
        number: of the last of those events.
    """

    number: int


Observer = Callable[[Event], None]
"""Called on the engine's thread, so it must be quick, wait for nothing, and ask nothing of the
runtime."""


class Observers:
    """Those who watch. One that fails is told nothing more, and nobody else notices."""

    def __init__(self) -> None:
        self._all: tuple[Observer, ...] = ()
        self._closely: tuple[Observer, ...] = ()

    @property
    def closely(self) -> bool:
        """Whether any of them wants to know what steps are spent on."""
        return bool(self._closely)

    def __bool__(self) -> bool:
        return bool(self._all)

    def add(self, observer: Observer, *, phases: bool = False) -> None:
        self._all = (*self._all, observer)
        if phases:
            self._closely = (*self._closely, observer)

    def remove(self, observer: Observer) -> None:
        self._all = tuple(other for other in self._all if other != observer)
        self._closely = tuple(other for other in self._closely if other != observer)

    def tell(self, event: Event) -> None:
        for observer in self._all:
            try:
                observer(event)
            except Exception:  # whatever it is, it must not end the engine
                log.exception("an observer failed, and is told nothing more")
                self.remove(observer)
