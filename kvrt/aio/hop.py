"""The way from the engine's thread to an event loop: once a step, whatever was said in it."""

import asyncio
import collections
import contextlib

from kvrt.aio.stream import Arrivals
from kvrt.outputs import Delta, Result


class Hop:
    """Takes what the engine delivers, and hands it out on the loop when a round has ended.

    Waking a loop writes to a pipe and takes the interpreter from the engine; a step with 256 tokens
    shall do it once.

    Args:
        loop: that the streams belong to.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._parcels: collections.deque[tuple[Arrivals, Delta | Result]] = collections.deque()
        self._untold = False  # whether there are parcels that it was not woken for
        self.hops = 0

    def put(self, arrivals: Arrivals, event: Delta | Result) -> None:
        """On the engine's thread."""
        if isinstance(event, Delta):
            arrivals.count(event)
        if not arrivals.whole or isinstance(event, Result):
            self._parcels.append((arrivals, event))
            self._untold = True

    def leave(self) -> None:
        """On the engine's thread: what is there goes to the loop. If that has been closed, nobody
        waits for it any more."""
        if self._untold:
            self._untold = False
            self.hops += 1
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        while self._parcels:
            arrivals, event = self._parcels.popleft()
            arrivals.add(event)
