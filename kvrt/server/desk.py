"""What a server has once, however many models it has."""

import asyncio
from typing import TYPE_CHECKING

from kvrt.server.access.gate import Gate
from kvrt.server.access.limits import Limits
from kvrt.server.config import ServerConfig
from kvrt.server.entry import Book
from kvrt.server.kept.similar import SimilarAnswers
from kvrt.server.moving import Moves
from kvrt.server.telemetry.audit import Audit
from kvrt.server.telemetry.tracing import Tracing
from kvrt.server.tenants.accounts import Accounts

if TYPE_CHECKING:
    from kvrt.embedding.embedder import Embedder


MOVING_S = 1.0
"""Streams that move have so long to end here."""


class Desk:
    """Belongs to the event loop.

    Args:
        config: of the server.
        audit: told of all requests.
        tracing: likewise.
        accounts: of who asks; None: nobody is held to anything.
        embedder: says which questions are nearly the same; None: nothing does.
    """

    def __init__(
        self,
        config: ServerConfig,
        audit: Audit | None = None,
        tracing: Tracing | None = None,
        accounts: Accounts | None = None,
        embedder: "Embedder | None" = None,
    ) -> None:
        self.config = config
        self.audit = audit
        self.similar = None
        if config.semantic_cache is not None and embedder is not None:
            self.similar = SimilarAnswers(
                embedder,
                config.semantic_cache,
                config.semantic_cache_size,
                config.semantic_cache_seconds,
            )
        self.gate = Gate(config.max_requests)
        self.accounts = accounts or Accounts(Limits.read(config.limits))
        ended = [] if audit is None else [audit.add]
        if tracing is not None:
            ended.append(tracing.add)
        self.book = Book(ended)
        self.moves = Moves()
        self.cut = asyncio.get_running_loop().create_future()
        """Done when nothing may go on any longer."""

    def cut_all(self) -> None:
        """End what still goes on; what can go on elsewhere does, and has a moment for that."""
        wait = MOVING_S if self.moves.begin_all() else 0.0
        asyncio.get_running_loop().call_later(wait, self._cut)

    def _cut(self) -> None:
        if not self.cut.done():
            self.cut.set_result(None)
