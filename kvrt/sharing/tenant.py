"""One tenant of a shared device."""

import contextlib
import os
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from kvrt.errors import CapacityError, OutOfMemory, StoreError
from kvrt.sharing.bell import Bell, ring
from kvrt.sharing.fair import Claim, allowance, fair_shares
from kvrt.sharing.figures import Figures
from kvrt.sharing.ledger import Ledger, Order, Row
from kvrt.units import format_bytes

_NAP_S = 0.002

_PATIENCE_S = 0.1
"""A step waits so long for a process that was stopped while it had the lock."""


class NotLeased(OutOfMemory):
    """Other tenants of the device hold, or are owed, what was asked for."""


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a tenant takes part.

    Args:
        name: for people: its model, say.
        guarantee: bytes that it is due whatever others want.
        lends: others may have what it does not use of them; they give it back when it does, at
            their next step. False: nobody else ever has them.
        weight: its part of the rest, beside others' weights.
        priority: tenants of a higher one come first.
    """

    name: str
    guarantee: int = 0
    lends: bool = False
    weight: float = 1.0
    priority: int = 0


class Tenant:
    """Takes memory before it is there, and gives it back when it is gone.

    `take`, `give` and `wants` are for one thread; others may look.

    Args:
        path: of the ledger.
        total: bytes of the device that are shared; None: as others have it that are there.
        terms: see there.
        whole: bytes that are shared if nobody is there, and `total` is None.

    Raises:
        CapacityError: the guarantees of all are more than there is.
        ConfigError: see `Ledger`.
        StoreError: see `Ledger`.
    """

    def __init__(
        self, path: Path, total: int | None, terms: Terms, whole: int | None = None
    ) -> None:
        self._ledger = Ledger(path, create=True)
        self.path = path
        self._seen = b"", 0  # rows, and what they allow
        self._claim = Claim(0, 0, terms.guarantee, terms.lends, terms.weight, terms.priority)
        try:
            with self._ledger.locked():
                self.total = self._ledger.agree(total, whole)
                self._check_guarantee(terms.guarantee)
                self._own = self._ledger.enter(Row(os.getpid(), terms.name, self._claim))
                self._ledger.set_waits(self._own, False)
            self._bell = Bell(path, self._own)
        except BaseException as error:
            self._ledger.close()
            if isinstance(error, TimeoutError):
                raise StoreError(str(error), reason="locked", fix="end that process") from None
            raise
        _tenants.add(self)

    def _check_guarantee(self, wanted: int) -> None:
        rows = self._ledger.rows().values()
        free = self.total - sum(row.claim.guarantee for row in rows)
        if wanted > free:
            raise CapacityError(
                f"{self._ledger.path.stem} shares {format_bytes(self.total)}, of which"
                f" {format_bytes(free)} are not guaranteed to others ({_names(rows)}), and not"
                f" {format_bytes(wanted)}",
                needed=wanted,
                free=free,
                fix="guarantee less, or stop another",
            )

    def close(self) -> None:
        """Leave: what it held is anybody's. Safe to call twice."""
        _tenants.discard(self)
        self._bell.close()
        self._ledger.close()

    def let_go(self) -> None:
        """This is a forked child: see `Ledger.let_go`."""
        self._bell.let_go()
        self._ledger.let_go()

    def listen(self, heard: Callable[[], None]) -> None:
        """Call `heard`, on a thread of its own, when it is to look at its allowance: others are
        due what it has, and it `waits`."""
        self._bell.listen(heard)

    def order(self) -> Order | None:
        """What somebody asks of it, and has not been answered; see `kvrt.sharing.orders`."""
        order = self._ledger.order(self._own)
        return None if order is None or order.answered else order

    def answer(self, order: Order, outcome: int, text: str = "") -> None:
        """What came of an order."""
        self._ledger.answer(self._own, order, outcome, text)

    def tell(self, figures: Figures) -> None:
        """Say what it does, for people who look."""
        self._ledger.tell(self._own, figures)

    def waits(self, waits: bool) -> None:
        """It looks by itself no more; or it does. Who says so looks once more, and then waits."""
        self._ledger.set_waits(self._own, waits)

    @property
    def claim(self) -> Claim:
        """What it says of itself."""
        return self._claim

    @property
    def held(self) -> int:
        """Bytes that it has."""
        return self._claim.held

    def take(self, nbytes: int) -> None:
        """Hold so much more: before it is there.

        Raises:
            NotLeased: it may not, now; from then on others see that it is wanted.
            OutOfMemory: whoever has the ledger's lock does not go on.
        """
        held = self._claim.held + nbytes
        try:
            with self._ledger.locked(_PATIENCE_S):
                others = self._others(self._ledger.rows())
                claim = self._claim
                if held <= allowance(self.total, claim, _claims(others)):
                    self._say(held, max(held, claim.want))
                    return
        except TimeoutError as error:
            raise OutOfMemory(str(error), needed=nbytes) from None
        self.wants(max(held, claim.want))
        self._wake(others)
        raise NotLeased(
            f"{format_bytes(nbytes)} more of {self._ledger.path.stem} are not to be had now: of"
            f" {format_bytes(self.total)}, this process holds {format_bytes(claim.held)}; others:"
            f" {_names(others.values())}",
            needed=nbytes,
            fix="stop another, or give this one a guarantee",
        )

    def take_soon(self, nbytes: int, timeout: float) -> None:
        """The same, after others have had time to give back what they are not due.

        Raises:
            NotLeased: it was not to be had in so many seconds.
        """
        hopeless = self.held + nbytes > self.total
        end = time.monotonic() + (0 if hopeless else timeout)
        while True:
            try:
                return self.take(nbytes)
            except NotLeased:
                if time.monotonic() > end:
                    self.wants(self.held)
                    raise
            time.sleep(_NAP_S)

    def give(self, nbytes: int) -> None:
        """It holds so much less: after it is gone."""
        self._say(self._claim.held - nbytes, self._claim.want)

    def wants(self, nbytes: int) -> None:
        """So many bytes, all together, would be of use now."""
        if nbytes != self._claim.want:
            self._say(self._claim.held, nbytes)

    def allowance(self) -> int:
        """Bytes that it may hold now: less than it does, if others are due what it has.

        Looked up without a lock: `take` decides. If it is less than it wants, those that have died
        are looked for, since what they had is free, and those that wait and have what it is due
        are woken.
        """
        content = self._ledger.content
        if content == self._seen[0]:
            return self._seen[1]
        allowed = self._allowance(self._ledger.peek())
        if allowed >= max(self._claim.held, self._claim.want):
            self._seen = content, allowed
            return allowed
        with contextlib.suppress(TimeoutError), self._ledger.locked(_PATIENCE_S):
            rows = self._ledger.rows()
            allowed = self._allowance(rows)
            if allowed < self._claim.want:
                self._wake(self._others(rows))
        return allowed

    def others(self) -> str:
        """What other tenants hold, for people."""
        return _names(self._others(self._ledger.peek()).values())

    def _allowance(self, rows: dict[int, Row]) -> int:
        others = self._others(rows)
        return allowance(self.total, self._claim, _claims(others))

    def _others(self, rows: dict[int, Row]) -> dict[int, Row]:
        guarantee = rows[self._own].claim.guarantee  # somebody may have given it another
        if guarantee != self._claim.guarantee:
            self._claim = replace(self._claim, guarantee=guarantee)
        return {number: row for number, row in rows.items() if number != self._own}

    def _wake(self, others: dict[int, Row]) -> None:
        """Ring for those that wait, and hold more than they are due."""
        waiting = [number for number in others if self._ledger.waits(number)]
        if not waiting:
            return
        due = fair_shares(self.total, [*_claims(others), self._claim])
        share = dict(zip(others, due, strict=False))
        for number in waiting:
            if others[number].claim.held > share[number]:
                self._ledger.set_waits(number, False)
                ring(self.path, number)

    def _say(self, held: int, want: int) -> None:
        self._claim = replace(self._claim, held=held, want=want)
        self._ledger.set(held, want)


def tenants_of(path: Path) -> tuple[int, list[Row]]:
    """The bytes that a ledger shares, and who lives of them.

    Raises:
        StoreError: there is no such ledger, or it cannot be read.
    """
    total, found = figures_of(path)
    return total, [row for row, _ in found]


def figures_of(path: Path) -> tuple[int, list[tuple[Row, Figures]]]:
    """The same, with what each tells of its work. Raises as `tenants_of`."""
    ledger = Ledger(path)
    try:
        with ledger.locked():
            rows = ledger.rows().items()
            return ledger.agree(), [(row, ledger.figures(number)) for number, row in rows]
    except TimeoutError as error:
        raise StoreError(str(error), reason="locked", fix="end that process") from None
    finally:
        ledger.close()


def _claims(rows: dict[int, Row]) -> list[Claim]:
    return [row.claim for row in rows.values()]


def _names(rows: Iterable[Row]) -> str:
    return (
        ", ".join(
            f"{row.name} (process {row.pid}) holds {format_bytes(row.claim.held)}" for row in rows
        )
        or "nobody"
    )


_tenants: weakref.WeakSet[Tenant] = weakref.WeakSet()


def _leave_to_the_parent() -> None:
    """A forked child has the parent's open files, and with them its locks: it lets go of them, so
    that the parent's memory is free when the parent is gone."""
    for tenant in list(_tenants):
        tenant.let_go()


os.register_at_fork(after_in_child=_leave_to_the_parent)
