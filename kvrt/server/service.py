"""A model that is served, as its routes share it."""

from collections.abc import Mapping
from time import monotonic

from kvrt.aio.runtime import AsyncRuntime
from kvrt.engine.events import Event
from kvrt.server.config import ServerConfig
from kvrt.server.desk import Desk
from kvrt.server.kept.exact import KeptAnswers
from kvrt.server.served import Served
from kvrt.server.telemetry.metrics import Metrics


class Service:
    """A model that is served. Belongs to the event loop.

    Args:
        runtime: asked by all.
        config: of the server.
        template: a chat template for the model.
        desk: what the server has once; None: one of its own.
        served: the model as it is shown, if that was found out already, which may take a while.
    """

    def __init__(
        self,
        runtime: AsyncRuntime,
        config: ServerConfig,
        template: str | None = None,
        desk: Desk | None = None,
        served: Served | None = None,
    ) -> None:
        self.runtime = runtime
        self.config = config
        self.desk = desk = desk or Desk(config)
        self.gate, self.accounts = desk.gate, desk.accounts
        self.book, self.cut = desk.book, desk.cut
        self.served = served or Served(runtime.runtime.model, config, template)
        size = config.response_cache
        self.kept = None if size is None else KeptAnswers(size, always=config.response_cache_all)
        self.metrics = Metrics(
            runtime.runtime,
            config.metrics_compat,
            self.served.names[0],
            desk.audit,
            self.kept,
            desk.similar,
        )
        self._patience = config.ready_seconds
        self._moved = monotonic()
        self._shares: Mapping[str, int] = {}
        runtime.runtime.add_observer(self._observe)
        if self.accounts.keys is not None:
            self.accounts.keys.follow(self._set_shares)

    def _set_shares(self, shares: Mapping[str, int]) -> None:
        """Of workspaces, of the KV memory. From any thread."""
        before, self._shares = self._shares, shares
        for name in {*before, *shares}:
            if before.get(name) != shares.get(name):
                self.runtime.runtime.set_share(name, shares.get(name))

    def share_of(self, tenant: str) -> int:
        """What a workspace is due, beside others'. From any thread."""
        return self._shares.get(tenant, 1)

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

    def close(self) -> None:
        """Watch the runtime no more."""
        if self.accounts.keys is not None:
            self.accounts.keys.leave(self._set_shares)
        self.runtime.runtime.remove_observer(self._observe)
