"""Runtimes that come and go as `Fleet` says, and requests that wait for theirs.

All models of a device are tenants of one share of the server's own, so that weights and KV memory
of all of them together are never more than there is; what one does not need of KV memory, others
have.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar

from starlette.types import ASGIApp

from kvrt.aio.runtime import AsyncRuntime
from kvrt.config import RuntimeConfig
from kvrt.errors import CapacityError, KvrtError
from kvrt.runtime import Runtime
from kvrt.server.access import gate
from kvrt.server.app import make_app
from kvrt.server.config import ANY_NAME
from kvrt.server.desk import Desk
from kvrt.server.errors import Refusal
from kvrt.server.fleet.members import Member, Order, Rest, Ticket
from kvrt.server.fleet.naming import Folder
from kvrt.server.fleet.places import Device
from kvrt.server.fleet.states import Fleet
from kvrt.server.fleet.turns import short_turns
from kvrt.server.fleet.weighing import Needs, weighed_or_none
from kvrt.server.served import Served
from kvrt.server.service import Service
from kvrt.sharing.share import sweep

log = logging.getLogger(__name__)

T = TypeVar("T")

LOADERS = 4
"""Models that come or go at once."""

MAX_BODY = 16 << 20
"""Of a request whose model is not loaded, so that nobody knows its longest prompt."""


@dataclass(slots=True, eq=False)
class Loaded:
    """A model that has a runtime.

    Args:
        service: of it.
        app: its routes.
    """

    service: Service
    app: ASGIApp


@dataclass(slots=True, eq=False)
class Watcher:
    """Somebody who is told of changes: the latest of each model.

    Args:
        changed: names of models.
        woken: set when there are any.
    """

    changed: dict[str, None] = field(default_factory=dict)
    woken: asyncio.Event = field(default_factory=asyncio.Event)


class Models:
    """See the module. Belongs to the event loop.

    Args:
        fleet: the rules.
        configs: of each of its models, by its name.
        folder: where further ones may come.
        desk: what the server has once.
        template: a chat template for all of them.
        devices: that they may be on, by the numbers of `Order.place`.
    """

    def __init__(
        self,
        fleet: Fleet,
        configs: Mapping[str, RuntimeConfig],
        folder: Folder | None,
        desk: Desk,
        template: str | None,
        devices: Sequence[Device],
    ) -> None:
        self.fleet = fleet
        self.desk = desk
        self.created = int(time.time())
        self.max_body = desk.config.max_body or MAX_BODY
        self.loads = {"loaded": 0, "failed": 0}
        """How loads have ended so far."""
        self.loaded: dict[str, Loaded] = {}
        """Those that have a runtime, also while they sleep."""
        self._configs = dict(configs)
        self._folder = folder
        self._template = template
        self._devices = devices
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[Ticket, asyncio.Future[None]] = {}
        self._threads = ThreadPoolExecutor(LOADERS, "kvrt-swap")
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._seen: dict[str, tuple[object, ...]] = {}
        self.watchers: set[Watcher] = set()

    def add(self, name: str, needs: Needs) -> None:
        """A model that is not loaded. One that could not be weighed is there, too: whoever asks for
        it is told why."""
        keep = self.desk.config.keep_alive
        lasts = keep if keep >= 0 else math.inf
        self.fleet.add(Member(name, needs.need, lasts, needs.residue, needs.barred))

    # --- for requests ------------------------------------------------------------------------

    async def named(self, name: str) -> str:
        """The model that a client means.

        Raises:
            Refusal: there is none of that name.
        """
        for each in (name, name.removesuffix(":latest")):
            if each in self.fleet.members:
                return each
        aliases = self.desk.config.alias
        if name in aliases or ANY_NAME in aliases:
            return next(iter(self._configs))
        await self.look()
        if name not in self.fleet.members:
            raise Refusal(
                HTTPStatus.NOT_FOUND,
                "no such model; /v1/models lists those of this server",
                param="model",
                code="model_not_found",
            )
        return name

    async def look(self) -> None:
        """Whether there are new models in the folder."""
        if self._folder is None:
            return
        for name, config in (await asyncio.to_thread(self._folder.models)).items():
            if name in self.fleet.members:
                continue
            needs = await weighed_or_none(config, [each.place for each in self._devices])
            if name not in self.fleet.members:
                self._configs[name] = config
                self.add(name, needs)

    @asynccontextmanager
    async def using(
        self, name: str, left: "asyncio.Future[Any]", keep_alive: float | None = None
    ) -> AsyncIterator[Loaded]:
        """A model for a request: it is loaded if need be, and stays meanwhile.

        Args:
            left: done when the client has left.
            keep_alive: seconds that it stays afterwards; None: as it is.

        Raises:
            Refusal: it cannot be loaded, too many wait for it, or the server ends.
            ConnectionError: the client has left.
        """
        if self.desk.gate.closing:
            raise gate.shutting_down()
        ticket = self.fleet.ask(name, self._now, keep_alive)
        waits = self._waiting[ticket] = self._loop.create_future()
        try:
            self._go_on()
            if not waits.done():
                parts = {waits, left, self.desk.cut}
                await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            if not waits.done():
                raise ConnectionError("left") if left.done() else gate.shutting_down()
            if ticket.error is not None:
                raise ticket.error
            yield self.loaded[name]
        finally:
            self._waiting.pop(ticket, None)
            if ticket.granted and not self.loaded[name].service.lives:
                self.fleet.broken(name, self._now)
            self.fleet.done(ticket, self._now)
            self._go_on()

    def load(self, name: str) -> None:
        """Have it loaded, without a request. Does not wait. Raises `Refusal` as `using`."""
        ticket = self.fleet.ask(name, self._now)
        self._waiting[ticket] = waits = self._loop.create_future()
        waits.add_done_callback(partial(self._preloaded, ticket))
        self._go_on()

    def _preloaded(self, ticket: Ticket, waits: object) -> None:
        self._waiting.pop(ticket, None)
        self.fleet.done(ticket, self._now)
        self._go_on()

    def rest(self, name: str, where: Rest) -> None:
        """Let it go as soon as no request has it. Does not wait."""
        self.fleet.rest(name, where, self._now)
        self._go_on()

    @contextlib.contextmanager
    def watched(self) -> Iterator[Watcher]:
        """Meanwhile, somebody is told of changes."""
        watcher = Watcher()
        self.watchers.add(watcher)
        try:
            yield watcher
        finally:
            self.watchers.discard(watcher)

    # --- for people --------------------------------------------------------------------------

    def status(self, name: str) -> dict[str, Any]:
        """What has become of a model."""
        member = self.fleet.members[name]
        told: dict[str, Any] = {
            "value": member.state,
            "bytes": member.need,
            "held_bytes": member.held,
            "running": member.running,
            "waiting": len(member.waiting),
            "requests_per_second": member.demand.rate(self._now),
            "load_seconds": member.load_s,
            "expires_at": self.expires(name),
        }
        if len(self._devices) > 1:
            at = member.place
            told["device"] = None if at is None else self._devices[at].place.name
        return told if member.error is None else {**told, "error": member.error.message}

    def expires(self, name: str) -> float | None:
        """When it is to go if nobody asks for it, by `time.time`; None: not known, or never."""
        member = self.fleet.members[name]
        if math.isinf(member.expires) or not (member.idle or member.state == "sleeping"):
            return None
        return time.time() + member.expires - self._now

    # --- carrying out ------------------------------------------------------------------------

    @property
    def _now(self) -> float:
        return self._loop.time()

    def _go_on(self) -> None:
        """Do what the rules say, tell who waits, and come again when it is time."""
        self.fleet.advance(self._now)
        orders, answered = self.fleet.take()
        for ticket in answered:
            waits = self._waiting.get(ticket)
            if waits is not None and not waits.done():
                waits.set_result(None)
        for order in orders:
            task = asyncio.create_task(self._carry_out(order))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._tell()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = self.fleet.next_time(self._now)
        if not math.isinf(at) and not self.desk.gate.closing:
            self._timer = self._loop.call_at(at, self._go_on)

    def _tell(self) -> None:
        for name, member in self.fleet.members.items():
            seen = (member.state, member.running, len(member.waiting))
            if self._seen.get(name) != seen:
                self._seen[name] = seen
                for watcher in self.watchers:
                    watcher.changed[name] = None
                    watcher.woken.set()

    async def _carry_out(self, order: Order) -> None:
        name = order.model
        try:
            match order.verb:
                case "load" | "wake":
                    await self._bring(name, self._devices[order.place])
                case "sleep":
                    await self._put_to_sleep(name)
                case "unload":
                    await self._drop(name)
                    self.fleet.gone(name, self._now)
        finally:
            self._go_on()

    async def _bring(self, name: str, device: Device) -> None:
        begun = self._now
        try:
            if name in self.loaded:
                runtime = self.loaded[name].service.runtime.runtime
                await self._in_thread(runtime.wake)
            else:
                self.loaded[name] = await self._opened(name, device)
                runtime = self.loaded[name].service.runtime.runtime
            if self.desk.gate.closing:
                raise gate.shutting_down()
        except Exception as error:
            await self._drop(name)
            self.loads["failed"] += 1
            needed = error.needed if isinstance(error, CapacityError) else None
            self.fleet.failed(name, self._now, _refusal(name, error), needed or 0)
            return
        self.loads["loaded"] += 1
        seconds = self._now - begun
        log.info("%s is loaded on %s, after %.3f s", name, device.place.name, seconds)
        need = runtime.model.weight_bytes + runtime.cache.min_bytes
        self.fleet.loaded(name, self._now, need, seconds)

    async def _opened(self, name: str, device: Device) -> Loaded:
        config = device.place.on(self._configs[name])
        config = replace(config, memory_limit=None, share=device.share)
        runtime = await self._in_thread(partial(Runtime, config=config))
        try:
            alias = (name, *self.desk.config.alias)
            named = replace(self.desk.config, alias=alias)
            # Templates are rendered and routes made where no stream waits for it.
            served = await self._in_thread(partial(Served, runtime.model, named, self._template))
            service = Service(AsyncRuntime(runtime), named, desk=self.desk, served=served)
            return Loaded(service, await self._in_thread(partial(make_app, service)))
        except BaseException:
            await self._in_thread(runtime.close)
            raise

    async def _put_to_sleep(self, name: str) -> None:
        runtime = self.loaded[name].service.runtime.runtime
        try:
            await self._in_thread(partial(runtime.sleep, 2))
        except KvrtError as error:  # its weights do not leave: it goes as a whole
            log.warning("%s does not sleep, and is unloaded: %s", name, error)
            await self._drop(name)
            self.fleet.gone(name, self._now, "unloaded")
        else:
            self.fleet.gone(name, self._now)

    async def _drop(self, name: str) -> None:
        """Close its runtime, if it has one."""
        loaded = self.loaded.pop(name, None)
        if loaded is None:
            return
        loaded.service.close()
        try:
            await loaded.service.runtime.close()
        except KvrtError as error:
            log.error("%s could not be closed: %s", name, error)

    def _in_thread(self, function: Callable[[], T]) -> "asyncio.Future[T]":
        return self._loop.run_in_executor(self._threads, short_turns()(function))

    def end(self) -> None:
        """Those who watch are told no more, so that the server can end."""
        for watcher in self.watchers:
            watcher.woken.set()

    async def close(self) -> None:
        """End what loads, and close all."""
        if self._timer is not None:
            self._timer.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for name in list(self.loaded):
            await self._drop(name)
        self._threads.shutdown()
        for name in {device.share.name for device in self._devices}:
            await asyncio.to_thread(sweep, f"{name}.")


def _refusal(name: str, error: Exception) -> Refusal:
    if isinstance(error, Refusal):
        return error
    if not isinstance(error, KvrtError):
        log.exception("%s cannot be loaded", name, exc_info=error)
        message = f"{name} cannot be loaded; the server's log says why"
    else:
        log.warning("%s cannot be loaded: %s", name, error)
        message = f"{name} cannot be loaded: {error}"
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, message, "model", "model_not_loaded")
