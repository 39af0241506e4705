"""Copies on a stream of their own, beside compute."""

import threading
from collections import deque
from contextlib import ExitStack, suppress
from typing import Any

from torch import Tensor

from kvrt.errors import KvrtError
from kvrt.spi import Ticket

from . import calls
from .calls import Context, call
from .pinned import PinnedMemory
from .tickets import Events, EventTicket


class RocmCopier:
    """See `kvrt.spi.Copier`.

    The stream waits for a ticket of any ROCm device without the host; for another kind of ticket
    the host waits, before the copy is submitted. Host memory that is not pinned will do, and then
    the runtime may finish the copy, or a copy of it, before it returns.

    Args:
        index: the device's.
        context: the device, for the runtime.
        events: for the tickets.
    """

    def __init__(self, index: int, context: Context, events: Events) -> None:
        self._context = context
        self._events = events
        self._pinned = PinnedMemory(index)
        self._flight: deque[EventTicket] = deque()
        self._lock = threading.Lock()
        context.use()
        self._stream: Any = call("hipStreamCreateWithFlags", calls.NON_BLOCKING)

    def host_buffer(self, nbytes: int) -> Tensor:
        return self._pinned.tensor(nbytes)

    def to_host(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        return self._copy(calls.TO_HOST, dst, src, after)

    def to_device(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        return self._copy(calls.TO_DEVICE, dst, src, after)

    def within(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        return self._copy(calls.WITHIN, dst, src, after)

    def _copy(self, kind: Any, dst: Tensor, src: Tensor, after: Ticket | None) -> Ticket:
        if after is not None and not isinstance(after, EventTicket):
            after.wait()
            after = None
        with self._lock:
            # Tickets keep their tensors alive, and the copier its tickets, whoever drops them.
            while self._flight and self._flight[0].done():
                self._flight.popleft()
            self._context.use()
            if after is not None and after.pending:
                call("hipStreamWaitEvent", self._stream, after.event, 0)
            try:
                call(
                    "hipMemcpyAsync", dst.data_ptr(), src.data_ptr(), dst.nbytes, kind, self._stream
                )
                ticket = self._events.record(self._stream, (dst, src))
            except KvrtError:
                with suppress(KvrtError):  # the first failure is the one to tell
                    call("hipStreamSynchronize", self._stream)
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
            call("hipStreamDestroy", self._stream)
            self._stream = None
