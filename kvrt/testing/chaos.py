"""A device that is as unpleasant as the contract allows: it fails, and it finishes late."""

import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import Tensor

from kvrt.spi import (
    AttentionBatch,
    AttentionParams,
    Chunk,
    Device,
    Extension,
    HeadNorm,
    Rotation,
    Span,
    Ticket,
)
from kvrt.testing.hazards import Access, Hazards, pages_used
from kvrt.wrappers.operators import WrappedDenseOps
from kvrt.wrappers.parts import (
    Params,
    Result,
    WrappedAttention,
    WrappedCopier,
    WrappedGraph,
    WrappedGraphs,
    WrappedMemory,
)
from kvrt.wrappers.wrapper import Wrapper

Copies = Literal["early", "late", "mixed"]
PATIENCE = 8
"""How often at most a ticket is asked before it comes true for one who only polls."""


class Chaos(Wrapper):
    """Fails chosen calls, and runs copies at the worst moment that their tickets allow.

    A copy runs at once, as soon as it may, when it is waited for, or in between, and copies run in
    any order; `after` is always honoured. Fences come true late in the same way.

    Compute runs when it is called, as on any host. What makes it late is that its KV pages count as
    in use until somebody has seen a fence behind it come true; and so does the memory of a copy,
    until its ticket has. Memory in use must not be unmapped, a copy must not begin on pages of
    compute that it does not wait for, and compute must not begin on memory of a copy; two that only
    read are no harm. Each attempt is a `ContractError`, whatever the seed; see
    `kvrt.testing.hazards`.

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
        self.attention = _ChaosAttention(self, inner.attention)
        self.hazards = Hazards()
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

    def extension(self, kind: type[Extension]) -> Extension | None:
        found: Any = super().extension(kind)
        if isinstance(found, WrappedDenseOps):
            return cast(Extension, _ChaosDenseOps(self, found.inner))
        if isinstance(found, WrappedGraphs):
            return cast(Extension, _ChaosGraphs(self, found.inner))
        return cast(Extension | None, found)

    def fence(self) -> Ticket:
        fence, covers = super().fence(), self.hazards.now()
        return self.later(fence.wait, None, covers, lambda: self.hazards.compute_done(covers))

    def synchronize(self) -> None:
        with self._lock:
            covers = self.hazards.now()
            waiting = list(self._pending)
            self._random.shuffle(waiting)
        for ticket in waiting:
            ticket.wait()
        super().synchronize()
        self.hazards.all_done(covers)

    def close(self) -> None:
        self._pending.clear()
        super().close()

    def later(
        self,
        work: Callable[[], object],
        after: Ticket | None,
        covers: int,
        seen: Callable[[], None],
    ) -> "LateTicket":
        """A ticket for `work`, which runs when this device pleases; see `LateTicket`."""
        with self._lock:
            patience = 0 if self._copies == "early" else self._random.randint(1, PATIENCE)
            ticket = LateTicket(work, after, covers, seen, patience, self._lock)
            self._pending.append(ticket)
            self._run_some()
        return ticket

    def copy(
        self,
        copy: Callable[[Tensor, Tensor], Ticket],
        dst: Tensor,
        src: Tensor,
        after: Ticket | None,
    ) -> "LateTicket":
        """A ticket for a copy."""
        # Of a ticket that is not ours we know what it covers when it has come true.
        foreign = after is not None and not isinstance(after, LateTicket)
        covers = after.covers if isinstance(after, LateTicket) else 0

        def work() -> None:
            if foreign:
                self.hazards.check_copy(dst, src, 0)
            copy(dst, src).wait()

        def seen() -> None:
            self.hazards.compute_done(covers)
            self.hazards.copy_done(number)

        if not foreign:
            self.hazards.check_copy(dst, src, covers)
        number = self.hazards.copy(dst, src)
        return self.later(work, after, covers, seen)

    def _run_some(self) -> None:
        """Run what is ready, in any order: everything if early, nothing if late."""
        self._pending = [ticket for ticket in self._pending if not ticket.finished]
        if self._copies == "late":
            return
        for ticket in self._random.sample(self._pending, len(self._pending)):
            if ticket.ready() and (self._copies == "early" or self._random.random() < 0.3):
                ticket.run()


class LateTicket:
    """A ticket whose work has perhaps not begun.

    Args:
        work: to be done once.
        after: to be done before it.
        covers: compute up to this number is done when this ticket is; see `Hazards.now`.
        seen: called when somebody is told that it is done.
        patience: how often it may be asked before it gives in.
        lock: held while the work runs.
    """

    def __init__(
        self,
        work: Callable[[], object],
        after: Ticket | None,
        covers: int,
        seen: Callable[[], None],
        patience: int,
        lock: threading.RLock,
    ) -> None:
        self.finished = False
        self.covers = covers
        self._work = work
        self._after = after
        self._seen = seen
        self._patience = patience
        self._lock = lock

    def ready(self) -> bool:
        """True if the ticket that this one must wait for is done."""
        after = self._after
        return after is None or (after.poll() if isinstance(after, LateTicket) else after.done())

    def run(self) -> None:
        with self._lock:
            if not self.finished:
                self._work()
                self.finished = True

    def poll(self) -> bool:
        """`done`, asked by the device itself: its user learns nothing."""
        if not self.finished:
            self._patience -= 1
            if self._patience < 0 and self.ready():
                self.run()
        return self.finished

    def done(self) -> bool:
        done = self.poll()
        if done:
            self._seen()
        return done

    def wait(self, timeout: float | None = None) -> bool:
        if self._after is not None and not self._after.wait(timeout):
            return False
        self.run()
        self._seen()
        return True


class _ChaosMemory(WrappedMemory):
    device: Chaos

    def unmap(self, span: Span, at: int, chunk: Chunk) -> None:
        self.device.hazards.unmap(span.base + at, self.device.info.granularity)
        super().unmap(span, at, chunk)


class _ChaosCopier(WrappedCopier):
    device: Chaos

    def to_host(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        copy = self.inner.to_host
        return self.device.around("copier.to_host", self.device.copy, copy, dst, src, after)

    def to_device(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        copy = self.inner.to_device
        return self.device.around("copier.to_device", self.device.copy, copy, dst, src, after)

    def within(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        copy = self.inner.within
        return self.device.around("copier.within", self.device.copy, copy, dst, src, after)


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """The device's own plan, and the pages that are read and written under it."""

    inner: object
    reads: Access
    writes: Access


class _ChaosAttention(WrappedAttention):
    device: Chaos

    def plan(self, batch: AttentionBatch) -> object:
        return _Plan(super().plan(batch), *pages_used(batch))

    def append(self, plan: object, layer: int, k: Tensor, v: Tensor) -> None:
        super().append(_appending(self.device, plan), layer, k, v)

    def run(
        self, plan: object, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        if isinstance(plan, _Plan):
            self.device.hazards.compute(plan.reads)
            plan = plan.inner
        super().run(plan, layer, q, out, params)


class _ChaosDenseOps(WrappedDenseOps):
    device: Chaos

    def rotate_append(
        self,
        plan: object,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rotation: Rotation | None,
        norm: HeadNorm | None,
    ) -> None:
        plan = _appending(self.device, plan)
        super().rotate_append(plan, layer, q, k, v, rotation, norm)


def _appending(device: Chaos, plan: object) -> object:
    """The device's own plan. One that it gave to `GraphCapture.capture` computes nothing yet."""
    if not isinstance(plan, _Plan):
        return plan
    device.hazards.compute(plan.writes)
    return plan.inner


class _ChaosGraph(WrappedGraph):
    device: Chaos

    def replay(self, batches: Sequence[AttentionBatch]) -> None:
        for access in itertools.chain(*map(pages_used, batches)):
            self.device.hazards.compute(access)
        super().replay(batches)


class _ChaosGraphs(WrappedGraphs):
    graph = _ChaosGraph
