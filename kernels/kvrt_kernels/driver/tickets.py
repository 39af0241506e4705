"""Tickets that are events of the device."""

import time

from torch import Tensor

from kvrt_kernels.driver.calls import Calls, Handle

FIRST_PAUSE, LONGEST_PAUSE = 20e-6, 1e-3
"""Seconds between two looks at an event, for one who waits with a timeout."""


class Events:
    """The events of a device. One is used again when nobody can ask for its ticket any more."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self._all: list[Handle] = []
        self._free: list[Handle] = []
        self.closed = False

    def record(self, stream: Handle, keep: tuple[Tensor, ...] = ()) -> "EventTicket":
        """A ticket for all work submitted to a stream so far.

        Args:
            keep: tensors that must live until it is done.
        """
        try:
            event = self._free.pop()
        except IndexError:
            event = self.calls.event_create()
            self._all.append(event)
        try:
            self.calls.event_record(event, stream)
        except BaseException:
            self._free.append(event)
            raise
        return EventTicket(self, event, keep)

    def give(self, event: Handle) -> None:
        self._free.append(event)

    def close(self) -> None:
        """The device is idle: every ticket counts as done from now on."""
        self.closed = True
        self._free.clear()
        while self._all:
            self.calls.event_destroy(self._all[-1])
            self._all.pop()


class EventTicket:
    """See `kvrt.spi.Ticket`."""

    def __init__(self, events: Events, event: Handle, keep: tuple[Tensor, ...]) -> None:
        self.event = event
        self._events = events
        self._keep = keep
        self._done = False

    @property
    def pending(self) -> bool:
        """Whether the event, as far as is known, is still to come. Does not ask for it."""
        return not self._done and not self._events.closed

    def done(self) -> bool:
        if not self._done and (self._events.closed or self._events.calls.event_done(self.event)):
            self._finish()
        return self._done

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is not None:
            return self._wait_until(time.monotonic() + timeout)
        if not self._done:
            if not self._events.closed:
                self._events.calls.event_synchronize(self.event)
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
