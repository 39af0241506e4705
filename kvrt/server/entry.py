"""What a server knows of one request while it goes on, and what is written of it afterwards."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.types import Message, Scope, Send

from kvrt.server.access.keys import Owner
from kvrt.server.openai import errors as openai
from kvrt.server.words.shapes import Words

if TYPE_CHECKING:
    from kvrt.server.asking import Answers, Progress

ENTRY = "kvrt.entry"
"""Where a request's scope has it."""

RECENT = 20
"""Requests that have ended and are still shown."""


@dataclass(slots=True, eq=False)
class Entry:
    """One request.

    Args:
        id: the client's or ours; plain.
        route: of those that there are, or ``other``.
        parent: what it is a part of, as its ``traceparent`` says (W3C Trace Context).
        owner: whose key it brought; None: nobody's.
        status: of its answer; 0: there is none yet.
        answers: of the model, once it was asked.
        model: its name.
        words: whose words its errors are in, until a protocol has read it.
        stopping: while it is answered: done as soon as somebody who may ends it.
    """

    id: str
    route: str
    parent: str = ""
    owner: Owner | None = None
    status: int = 0
    answers: "Answers | None" = None
    model: str = ""
    words: Words = openai
    stopping: "asyncio.Future[None] | None" = None
    at: float = field(default_factory=time.time)
    begun: float = field(default_factory=time.monotonic)
    ended: float | None = None

    @property
    def seconds(self) -> float:
        """That it took, or takes so far."""
        return (self.ended or time.monotonic()) - self.begun

    @property
    def progress(self) -> "Progress | None":
        """How far the answers have come; None: the model was not asked."""
        return None if self.answers is None else self.answers.progress

    def stop(self) -> bool:
        """End it. False: it is not answered now."""
        if self.stopping is None or self.stopping.done():
            return False
        self.stopping.set_result(None)
        return True

    def watching(self, send: Send) -> Send:
        """`send`, whose status is noted."""

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start" and not self.status:
                self.status = message["status"]
            await send(message)

        return noting


class Book:
    """The requests that go on. Belongs to the event loop.

    Args:
        ended: are told of each that has.
    """

    def __init__(self, ended: Sequence[Callable[[Entry], None]] = ()) -> None:
        self._ended = ended
        self.open: dict[Entry, None] = {}
        self.recent: deque[Entry] = deque(maxlen=RECENT)
        """Those that asked the model and have ended, the newest last."""

    @contextmanager
    def entered(self, entry: Entry) -> Iterator[None]:
        """Meanwhile, it goes on."""
        self.open[entry] = None
        try:
            yield
        finally:
            del self.open[entry]
            entry.ended = time.monotonic()
            if entry.answers is not None:
                self.recent.append(entry)
            for tell in self._ended:
                tell(entry)


def entry_of(scope: Scope) -> Entry:
    found: Entry = scope[ENTRY]
    return found
