"""What all routes share."""

import asyncio
from functools import partial
from time import monotonic

from kvrt.aio.runtime import AsyncRuntime
from kvrt.engine.events import Event
from kvrt.server.access.gate import Gate
from kvrt.server.access.limits import Limits
from kvrt.server.config import ServerConfig
from kvrt.server.entry import Book
from kvrt.server.kept import KeptAnswers
from kvrt.server.served import Served
from kvrt.server.telemetry.audit import Audit
from kvrt.server.telemetry.metrics import Metrics
from kvrt.server.telemetry.tracing import Tracing
from kvrt.server.tenants.accounts import Accounts


class Service:
    """A model that is served. Belongs to the event loop.

    Args:
        runtime: asked by all.
        config: of the server.
        template: a chat template for the model.
        audit: told of all requests.
        tracing: likewise.
        accounts: of who asks; None: nobody is held to anything.
    """

    def __init__(
        self,
        runtime: AsyncRuntime,
        config: ServerConfig,
        template: str | None = None,
        audit: Audit | None = None,
        tracing: Tracing | None = None,
        accounts: Accounts | None = None,
    ) -> None:
        self.runtime = runtime
        self.config = config
        self.served = Served(runtime.runtime.model, config, template)
        self.gate = Gate(config.max_requests)
        self.accounts = accounts or Accounts(Limits.read(config.limits))
        size = config.response_cache
        self.kept = None if size is None else KeptAnswers(size, always=config.response_cache_all)
        ended = [] if audit is None else [audit.add]
        if tracing is not None:
            ended.append(partial(tracing.add, model=self.served.names[0]))
        self.book = Book(ended)
        self.metrics = Metrics(
            runtime.runtime, config.metrics_compat, self.served.names[0], audit, self.kept
        )
        self.cut = asyncio.get_running_loop().create_future()
        """Done when nothing may go on any longer."""
        self._patience = config.ready_seconds
        self._moved = monotonic()
        runtime.runtime.add_observer(self._observe)

    def _observe(self, event: Event) -> None:
        """On the engine's thread."""
        self._moved = monotonic()
        self.metrics.observe(event)

    @property
    def lives(self) -> bool:
        """Whether there is an engine: one that has stopped never comes back."""
        return self.runtime.runtime.ended is None

    @property
    def moves(self) -> bool:
        """Whether the engine goes on, where it has anything to do."""
        if not self.lives:
            return False
        if not self.runtime.runtime.busy:
            return True
        return monotonic() - max(self._moved, self.gate.since) < self._patience

    def cut_all(self) -> None:
        """End what still goes on."""
        if not self.cut.done():
            self.cut.set_result(None)

    def close(self) -> None:
        """Watch the runtime no more."""
        self.runtime.runtime.remove_observer(self._observe)
