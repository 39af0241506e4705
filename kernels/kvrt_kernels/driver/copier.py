"""Copies on a stream of their own, beside compute."""

import threading
from collections import deque
from contextlib import ExitStack, suppress

from torch import Tensor

from kvrt.errors import KvrtError
from kvrt.spi import Ticket
from kvrt_kernels.driver.calls import Calls, Direction, Handle
from kvrt_kernels.driver.pinned import PinnedMemory
from kvrt_kernels.driver.tickets import Events, EventTicket


class StreamCopier:
    """See `kvrt.spi.Copier`.

    The stream waits for a ticket of any of the vendor's devices without the host; for another kind
    of ticket the host waits, before the copy is submitted. Host memory that is not pinned will do,
    and then the driver may finish the copy, or a copy of it, before it returns.

    Args:
        calls: of the device.
        events: for the tickets.
    """

    def __init__(self, calls: Calls, events: Events) -> None:
        self._calls = calls
        self._events = events
        self._pinned = PinnedMemory(calls)
        self._flight: deque[EventTicket] = deque()
        self._lock = threading.Lock()
        self._stream: Handle = calls.stream_create()

    def host_buffer(self, nbytes: int) -> Tensor:
        return self._pinned.tensor(nbytes)

    def to_host(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        return self._copy("to host", dst, src, after)

    def to_device(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        return self._copy("to device", dst, src, after)

    def within(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        return self._copy("within", dst, src, after)

    def _copy(self, direction: Direction, dst: Tensor, src: Tensor, after: Ticket | None) -> Ticket:
        calls = self._calls
        if after is not None and not isinstance(after, EventTicket):
            after.wait()
            after = None
        with self._lock:
            # Tickets keep their tensors alive, and the copier its tickets, whoever drops them.
            while self._flight and self._flight[0].done():
                self._flight.popleft()
            if after is not None and after.pending:
                calls.stream_wait(self._stream, after.event)
            try:
                calls.copy(direction, dst.data_ptr(), src.data_ptr(), dst.nbytes, self._stream)
                ticket = self._events.record(self._stream, (dst, src))
            except KvrtError:
                with suppress(KvrtError):  # the first failure is the one to tell
                    calls.stream_synchronize(self._stream)
                raise
            self._flight.append(ticket)
        return ticket

    def close(self) -> None:
        """The device is idle. Gives back the stream and the host memory that nobody uses."""
        self._flight.clear()
        with ExitStack() as last_first:
            last_first.callback(self._pinned.close)
            last_first.callback(self._destroy_stream)

    def _destroy_stream(self) -> None:
        if self._stream is not None:
            self._calls.stream_destroy(self._stream)
            self._stream = None
