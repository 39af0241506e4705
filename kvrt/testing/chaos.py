"""A device that is as unpleasant as the contract allows: it fails, and it finishes late."""

import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor

from kvrt.errors import ContractError
from kvrt.spi import Chunk, Device, Span, Ticket
from kvrt.wrappers.wrapper import Params, Result, WrappedCopier, WrappedMemory, Wrapper

Copies = Literal["early", "late", "mixed"]
PATIENCE = 8
"""How often at most a ticket is asked before it comes true for one who only polls."""


class Chaos(Wrapper):
    """Fails chosen calls, and runs copies at the worst moment that their tickets allow.

    A copy runs at once, as soon as it may, when it is waited for, or in between, and copies run in
    any order; `after` is always honoured. Fences come true late in the same way. Memory under a
    copy that has not run must not be unmapped, and the attempt is a `ContractError`.

    Args:
        inner: the device that does the work.
        seed: of all choices; one seed gives one behaviour for one sequence of calls.
        fail: what the n-th call (from 1) of a method raises, before anything is done, e.g.
            ``{("memory.create", 3): OutOfMemory("chaos")}``.
        copies: "early" runs a copy when it is submitted or, if it must wait for another ticket, at
            the first call after that one is done; "late" only when it is waited for or has been
            asked for often; "mixed" at a random call in between.
    """

    def __init__(
        self,
        inner: Device,
        seed: int = 0,
        fail: Mapping[tuple[str, int], Exception] | None = None,
        copies: Copies = "mixed",
    ) -> None:
        super().__init__(inner)
        self.memory = _ChaosMemory(self, inner.memory)
        self.copier = _ChaosCopier(self, inner.copier)
        self.calls: Counter[str] = Counter()
        self._fail = dict(fail or {})
        self._copies = copies
        self._random = random.Random(seed)
        self._pending: list[LateTicket] = []
        self._lock = threading.RLock()

    def around(
        self, name: str, call: Callable[Params, Result], *args: Params.args, **kwargs: Params.kwargs
    ) -> Result:
        with self._lock:
            self.calls[name] += 1
            error = self._fail.get((name, self.calls[name]))
            if error is not None:
                raise error
            self._run_some()
        return call(*args, **kwargs)

    def fence(self) -> Ticket:
        fence = super().fence()
        return self.later(fence.wait, None, ())

    def synchronize(self) -> None:
        with self._lock:
            waiting = list(self._pending)
            self._random.shuffle(waiting)
        for ticket in waiting:
            ticket.wait()
        super().synchronize()

    def close(self) -> None:
        self._pending.clear()
        super().close()

    def later(
        self, work: Callable[[], object], after: Ticket | None, touched: tuple[Tensor, ...]
    ) -> "LateTicket":
        """A ticket for `work`, which runs when this device pleases."""
        with self._lock:
            patience = 0 if self._copies == "early" else self._random.randint(1, PATIENCE)
            ticket = LateTicket(work, after, touched, patience, self._lock)
            self._pending.append(ticket)
            self._run_some()
        return ticket

    def _run_some(self) -> None:
        """Run what is ready, in any order: everything if early, nothing if late."""
        self._pending = [ticket for ticket in self._pending if not ticket.finished]
        if self._copies == "late":
            return
        for ticket in self._random.sample(self._pending, len(self._pending)):
            if ticket.ready() and (self._copies == "early" or self._random.random() < 0.3):
                ticket.run()

    def check_unused(self, start: int, nbytes: int) -> None:
        """No copy that is still to run may touch those addresses."""
        with self._lock:
            pending = [ticket for ticket in self._pending if not ticket.finished]
            for tensor in (tensor for ticket in pending for tensor in ticket.touched):
                if start - tensor.nbytes < tensor.data_ptr() < start + nbytes:
                    raise ContractError(
                        f"{nbytes} bytes at {start:#x} are unmapped while a copy uses them",
                        fix="wait for the copy's ticket first",
                    )


class LateTicket:
    """A ticket whose work has perhaps not begun."""

    def __init__(
        self,
        work: Callable[[], object],
        after: Ticket | None,
        touched: tuple[Tensor, ...],
        patience: int,
        lock: threading.RLock,
    ) -> None:
        self.finished = False
        self.touched = touched
        self._work = work
        self._after = after
        self._patience = patience
        self._lock = lock

    def ready(self) -> bool:
        """True if the ticket that this one must wait for is done."""
        return self._after is None or self._after.done()

    def run(self) -> None:
        with self._lock:
            if not self.finished:
                self._work()
                self.finished = True

    def done(self) -> bool:
        if not self.finished:
            self._patience -= 1
            if self._patience < 0 and self.ready():
                self.run()
        return self.finished

    def wait(self, timeout: float | None = None) -> bool:
        if self._after is not None and not self._after.wait(timeout):
            return False
        self.run()
        return True


class _ChaosMemory(WrappedMemory):
    device: Chaos

    def unmap(self, span: Span, at: int, chunk: Chunk) -> None:
        self.device.check_unused(span.base + at, self.device.info.granularity)
        super().unmap(span, at, chunk)


class _ChaosCopier(WrappedCopier):
    device: Chaos

    def to_host(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        copy = self.inner.to_host
        return self.device.around("copier.to_host", self._later, copy, dst, src, after)

    def to_device(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        copy = self.inner.to_device
        return self.device.around("copier.to_device", self._later, copy, dst, src, after)

    def within(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        copy = self.inner.within
        return self.device.around("copier.within", self._later, copy, dst, src, after)

    def _later(
        self,
        copy: Callable[[Tensor, Tensor], Ticket],
        dst: Tensor,
        src: Tensor,
        after: Ticket | None,
    ) -> Ticket:
        return self.device.later(lambda: copy(dst, src).wait(), after, (dst, src))
