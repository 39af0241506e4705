"""What a store of pages was asked for and owes an answer to."""

import time
from collections import deque

from kvrt.kv.tiers.blockfile import Bytes
from kvrt.kv.tiers.names import StoredName
from kvrt.kv.tiers.remote.frames import SLOWEST, Kind
from kvrt.kv.tiers.workers import Job

PING_S = 2.0
"""A store that owes nothing is asked whether it is still there."""


class RemoteTicket(Job):
    """A request to a store: the sending or the fetching of a page, say.

    Args:
        kind: of it.
        fields: of its frame, without the seal.
        name: of the page, if it is about one.
        body: what is sent, or written to.
    """

    def __init__(
        self, kind: Kind, fields: bytes, name: StoredName | None = None, body: Bytes | None = None
    ) -> None:
        super().__init__(lambda job: False)
        self.kind, self.fields, self.name, self.body = kind, fields, name, body

    @property
    def group(self) -> int:
        return 0 if self.name is None else self.name.group

    @property
    def page(self) -> tuple[StoredName, Bytes]:
        """The page that it is about."""
        assert self.name is not None, "it is about a page"
        assert self.body is not None, "it is not done"
        return self.name, self.body

    @property
    def nbytes(self) -> int:
        return 0 if self.body is None else self.body.nbytes

    def overdue(self) -> bool:
        """Never: what is due is given up where it is waited for, and the ticket is done then."""
        return False

    def settle(self, *, ok: bool) -> None:
        """It is done, and nobody uses its memory any more."""
        self.body = None
        self._ok = ok
        self._finish()


class Talk:
    """What is owed on one connection: answers come in the order of what was asked.

    Args:
        patience: seconds.
    """

    def __init__(self, patience: float) -> None:
        self.owed: deque[RemoteTicket] = deque()
        self._patience = patience
        self._since = self._heard = time.monotonic()  # since when something is owed
        self._moved = 0  # bytes, since then

    def ask(self, ticket: RemoteTicket) -> None:
        if not self.owed:
            self._since, self._moved = time.monotonic(), 0
        self.owed.append(ticket)

    def oldest(self) -> RemoteTicket | None:
        return self.owed[0] if self.owed else None

    def answered(self) -> None:
        """The oldest was."""
        self._moved += self.owed.popleft().nbytes
        self._heard = time.monotonic()

    def overdue(self) -> bool:
        """Whether it takes longer than anybody should wait."""
        allowed = self._patience + self._moved / SLOWEST
        return bool(self.owed) and time.monotonic() - self._since > allowed

    def silent(self) -> bool:
        """Whether it is time to ask whether somebody is there."""
        return not self.owed and time.monotonic() - self._heard > min(PING_S, self._patience / 2)
