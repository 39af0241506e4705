"""What an engine tells those who watch it: what becomes of requests, each step, and changes to
what is cached."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

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

    def __bool__(self) -> bool:
        return bool(self._all)

    def add(self, observer: Observer) -> None:
        self._all = (*self._all, observer)

    def remove(self, observer: Observer) -> None:
        self._all = tuple(other for other in self._all if other != observer)

    def tell(self, event: Event) -> None:
        for observer in self._all:
            try:
                observer(event)
            except Exception:  # whatever it is, it must not end the engine
                log.exception("an observer failed, and is told nothing more")
                self.remove(observer)
