"""What somebody outside asks of a tenant, through the ledger: a place for one order in each row.

    whoever asks     post(...)      under the ledger's lock: the order, a number, a revision; rings
    the tenant       order()        on its engine's thread: what it has not answered yet
                     answer(...)    what came of it
    whoever asks     ...            waits for the answer

Revisions number the changes of all who ask: one that comes late, after a newer one, is stale.
"""

import contextlib
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from kvrt.errors import CapacityError, ConfigError, KvrtError, StoreError
from kvrt.sharing.bell import ring
from kvrt.sharing.ledger import Ledger, Row
from kvrt.units import format_bytes

_NAP_S = 0.002


class Verb(IntEnum):
    """What can be asked."""

    LIMIT = 1
    """Hold no more than so many bytes, weights included."""
    GUARANTEE = 2
    """Be due so many bytes from now on."""
    RECLAIM = 3
    """Give back what is only cached, and what no page needs."""
    SLEEP = 4
    """Give memory back until it is woken: see `kvrt.Runtime.sleep`."""
    WAKE = 5
    """Take it again."""


class Outcome(IntEnum):
    """What came of it."""

    APPLIED = 1
    DEFERRED = 2
    """More is held; it is given back as it comes free."""
    STALE = 3
    """A change with the same or a higher revision came before; nothing was changed."""
    REFUSED = 4
    """It cannot be; the text says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Of a tenant.

    Args:
        outcome: see there.
        revision: of the order.
        text: why it was refused.
    """

    outcome: Outcome
    revision: int
    text: str = ""


def post(
    path: Path,
    who: str,
    verb: Verb,
    value: int = 0,
    *,
    revision: int | None = None,
    timeout: float = 60.0,
) -> Answer:
    """Ask a tenant, and wait for its answer.

    Args:
        path: of the ledger.
        who: the tenant's name, or the number of its process.
        value: bytes, or a level.
        revision: of this change; None: it is the newest.
        timeout: seconds to wait.

    Raises:
        ConfigError: there is no such tenant, or several.
        CapacityError: so much cannot be guaranteed.
        StoreError: the ledger cannot be used.
        KvrtError: it did not answer in time, or ended meanwhile.
    """
    end = time.monotonic() + timeout
    with contextlib.closing(Ledger(path)) as ledger:
        while True:
            try:
                with ledger.locked():
                    total, rows = ledger.agree(), ledger.rows()
                    number = _found(path, rows, who)
                    if ledger.take_turn(number):
                        last = ledger.order(number)
                        newest = 0 if last is None else last.revision
                        given = newest + 1 if revision is None else revision
                        if last is not None and given <= newest:
                            return Answer(Outcome.STALE, newest)
                        if verb is Verb.GUARANTEE:
                            _guarantee(ledger, total, rows, number, value)
                        order = ledger.post(number, verb, value, given)
                        if verb is Verb.GUARANTEE:  # it is heeded by all from now on
                            ledger.answer(number, order, Outcome.APPLIED, "")
                        break
            except TimeoutError as error:
                raise StoreError(str(error), reason="locked", fix="end that process") from None
            _nap(end, who, timeout)
        ring(path, number)
        while True:
            with contextlib.suppress(TimeoutError), ledger.locked():
                _found(path, ledger.rows(), who)
                found = ledger.order(number)
            if found is not None and found.number == order.number and found.answered:
                return Answer(Outcome(found.outcome), given, found.text)
            try:
                _nap(end, who, timeout)
            except KvrtError:
                ledger.answer(number, order, Outcome.REFUSED, "withdrawn")
                raise


def _found(path: Path, rows: dict[int, Row], who: str) -> int:
    found = [number for number, row in rows.items() if who in (row.name, str(row.pid))]
    if len(found) == 1:
        return found[0]
    there = ", ".join(f"{row.name} (process {row.pid})" for row in rows.values()) or "nobody"
    if found:
        raise ConfigError(
            f"{path.name} has {len(found)} tenants called {who}: {there}",
            fix="name one by its process",
        )
    raise ConfigError(f"{path.name} has no tenant {who}; there is {there}", fix="see kvrt top")


def _guarantee(ledger: Ledger, total: int, rows: dict[int, Row], number: int, nbytes: int) -> None:
    others = sum(row.claim.guarantee for own, row in rows.items() if own != number)
    if nbytes > total - others:
        raise CapacityError(
            f"{ledger.path.name} shares {format_bytes(total)}, of which {format_bytes(others)} are"
            f" guaranteed to others, and not {format_bytes(nbytes)}",
            needed=nbytes,
            free=total - others,
            fix="guarantee less, or less to another",
        )
    ledger.set_guarantee(number, nbytes)


def _nap(end: float, who: str, timeout: float) -> None:
    if time.monotonic() > end:
        raise KvrtError(
            f"{who} has not answered within {timeout:g} s",
            fix="its step takes longer, or it takes no orders: only runtimes do",
        )
    time.sleep(_NAP_S)
