"""Tickets that are events of the device."""

import time
from typing import Any

from torch import Tensor

from . import calls
from .calls import Context, call

FIRST_PAUSE, LONGEST_PAUSE = 20e-6, 1e-3
"""Seconds between two looks at an event, for one who waits with a timeout."""


class Events:
    """The events of a device. One is used again when nobody can ask for its ticket any more."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._all: list[Any] = []
        self._free: list[Any] = []
        self.closed = False

    def record(self, stream: Any, keep: tuple[Tensor, ...] = ()) -> "EventTicket":
        """A ticket for all work submitted to a stream so far.

        Args:
            keep: tensors that must live until it is done.
        """
        self._context.use()
        try:
            event = self._free.pop()
        except IndexError:
            event = call("cuEventCreate", calls.DISABLE_TIMING)
            self._all.append(event)
        try:
            call("cuEventRecord", event, stream)
        except BaseException:
            self._free.append(event)
            raise
        return EventTicket(self, event, keep)

    def give(self, event: Any) -> None:
        self._free.append(event)

    def close(self) -> None:
        """The device is idle: every ticket counts as done from now on."""
        self.closed = True
        self._free.clear()
        while self._all:
            call("cuEventDestroy", self._all[-1])
            self._all.pop()


class EventTicket:
    """See `kvrt.spi.Ticket`."""

    def __init__(self, events: Events, event: Any, keep: tuple[Tensor, ...]) -> None:
        self.event = event
        self._events = events
        self._keep = keep
        self._done = False

    @property
    def pending(self) -> bool:
        """Whether the event, as far as is known, is still to come. Does not ask for it."""
        return not self._done and not self._events.closed

    def done(self) -> bool:
        if not self._done and (self._events.closed or calls.finished(self.event)):
            self._finish()
        return self._done

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is not None:
            return self._wait_until(time.monotonic() + timeout)
        if not self._done:
            if not self._events.closed:
                call("cuEventSynchronize", self.event)
            self._finish()
        return True

    def _wait_until(self, deadline: float) -> bool:
        pause = FIRST_PAUSE
        while not self.done():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE)
        return True

    def _finish(self) -> None:
        self._done = True
        self._keep = ()

    def __del__(self) -> None:
        self._events.give(self.event)
