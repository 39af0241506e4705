"""What a store of pages is known to have, and what it is still to be asked."""

import threading
from collections import deque
from dataclasses import dataclass

from kvrt.kv.tiers.names import StoredName
from kvrt.kv.tiers.remote.frames import Frame, Kind, id_of, ids_of
from kvrt.kv.tiers.remote.owed import RemoteTicket

MOST_QUEUED = 256
"""Pages that wait to be sent; more are not."""

MOST_KNOWN = 1 << 22
"""Pages of the store that are known; others are not found."""


@dataclass(frozen=True, slots=True)
class RemoteStats:
    """What a `RemoteStore` knows and did.

    Args:
        connected: now.
        pages: that the store has, as far as it has told.
        sent: pages that the store took.
        found: fetches that brought the page.
        missed: fetches that did not, whatever the reason.
        dropped: pages that were to be sent and were not.
        damaged: pages that came and were not those that were asked for.
        connections: that were made.
        cut: of these, ended by a fault of the other end or on the way.
    """

    connected: bool
    pages: int
    sent: int
    found: int
    missed: int
    dropped: int
    damaged: int
    connections: int
    cut: int


class Desk:
    """Where tickets are left by those who want pages, and taken by the connection to the store.

    From any thread. While there is no connection, nothing is known and nothing taken.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._known: set[bytes] = set()
        self._sending: dict[bytes, RemoteTicket] = {}
        self._urgent: deque[RemoteTicket] = deque()
        self._later: deque[RemoteTicket] = deque()
        self._connected = self._closing = False
        self._sent = self._found = self._missed = self._dropped = self._damaged = 0
        self._connections = self._cut = 0

    # --- for those who want pages ----------------------------------------------------------------

    def __contains__(self, name: StoredName) -> bool:
        """Whether the store has a page, as far as it has told."""
        return id_of(name) in self._known and self._connected

    def send(self, name: StoredName, ticket: RemoteTicket) -> RemoteTicket:
        """Take the ticket of a page to be sent. Returns the page's: it may be on its way."""
        id = id_of(name)
        with self._mutex:
            if (sending := self._sending.get(id)) is not None:
                return sending
            takes = self._connected and len(self._later) < MOST_QUEUED
            if takes and not self._closing:
                self._sending[id] = ticket
                self._later.append(ticket)
            else:
                self._dropped += 1
                ticket.drop()
        return ticket

    def fetch(self, name: StoredName, ticket: RemoteTicket) -> None:
        """Take the ticket of a page that somebody waits for."""
        with self._mutex:
            if name in self and not self._closing:
                self._urgent.append(ticket)
            else:
                self._missed += 1
                ticket.drop()

    def remove(self, name: StoredName, ticket: RemoteTicket) -> bool:
        """Take the ticket of a page that is to go. Returns whether it was known."""
        with self._mutex:
            id = id_of(name)
            sending = self._sending.pop(id, None)
            known = id in self._known or sending is not None
            self._known.discard(id)
            if known and self._connected:
                self._later.append(ticket)
        return known

    def ask(self, ticket: RemoteTicket) -> None:
        """Take a ticket that nobody waits for, if there is a connection."""
        with self._mutex:
            if self._connected:
                self._later.append(ticket)

    def close(self) -> None:
        """Take no more pages."""
        with self._mutex:
            self._closing = True

    @property
    def busy(self) -> bool:
        """Whether pages are still to be sent, and can be."""
        return bool(self._sending) and self._connected

    def stats(self) -> RemoteStats:
        """What became of tickets."""
        with self._mutex:
            return RemoteStats(
                connected=self._connected,
                pages=len(self._known),
                sent=self._sent,
                found=self._found,
                missed=self._missed,
                dropped=self._dropped,
                damaged=self._damaged,
                connections=self._connections,
                cut=self._cut,
            )

    # --- for the connection ----------------------------------------------------------------------

    def begin(self) -> None:
        """There is a connection."""
        with self._mutex:
            self._connected = True
            self._connections += 1

    def end(self, *, cut: bool) -> None:
        """There is none any more.

        Args:
            cut: by a fault of the other end or on the way.
        """
        with self._mutex:
            self._connected = False
            self._cut += cut
            self._known.clear()

    def next(self) -> RemoteTicket | None:
        """Give the next ticket away: what somebody waits for first."""
        with self._mutex:
            queue = self._urgent or self._later
            return queue.popleft() if queue else None

    def settle(self, ticket: RemoteTicket, *, ok: bool) -> None:
        """A ticket that was given away is done.

        Args:
            ok: the store has done what was asked.
        """
        with self._mutex:
            if ticket.kind is Kind.PUT:
                assert ticket.name is not None, "a page is sent"
                wanted = self._sending.pop(id_of(ticket.name), None)
                if ok and wanted is ticket:  # nobody has removed it meanwhile
                    self._known.add(id_of(ticket.name))
                self._sent += ok
                self._dropped += not ok
            elif ticket.kind is Kind.GET:
                self._found += ok
                self._missed += not ok
        ticket.settle(ok=ok)

    def drop_all(self) -> None:
        """Nothing that was left comes to anything."""
        with self._mutex:
            rest = [*self._urgent, *self._later]
            self._urgent.clear()
            self._later.clear()
        for ticket in rest:
            self.settle(ticket, ok=False)

    def learn(self, frame: Frame) -> None:
        """The store tells of pages that have come, or gone."""
        ids = ids_of(frame.fields)
        with self._mutex:
            if frame.kind is Kind.LOST:
                self._known.difference_update(ids)
            elif len(self._known) + len(ids) <= MOST_KNOWN:
                self._known.update(ids)

    def missed(self, name: StoredName) -> None:
        """The store has not given a page."""
        with self._mutex:
            self._known.discard(id_of(name))

    def damaged(self) -> None:
        """It has given one that was not what was asked for."""
        with self._mutex:
            self._damaged += 1
