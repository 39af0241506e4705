"""Works on the batches of a server, beside its clients and behind them."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from kvrt.batches.pace import Pace, Standing
from kvrt.batches.places import Places
from kvrt.batches.price import Price
from kvrt.batches.run import Answer, Rules, Runner
from kvrt.batches.store import Store
from kvrt.batches.words import Batch, Kind, Problem
from kvrt.errors import KvrtError
from kvrt.server.batches.answering import URLS, LineAnswers
from kvrt.server.batches.webhooks import Hook, Webhooks
from kvrt.server.telemetry.metrics import usage

if TYPE_CHECKING:
    from kvrt.server.openai.embeddings import Embeddings
    from kvrt.server.service import Service

log = logging.getLogger(__name__)

SHARE = 0.75
"""Of the sequences that may run together, and of the KV memory, so much is for lines, at most."""

LOOK_S = 0.2
AGAIN_S = 5.0
"""What cannot be kept, as where the disk is full, is tried again after so long."""

FOLLOW_S = 1.0
"""How often it is looked what other servers have taken."""

SWEEP_S = 60.0
MAX_FILE = 512 << 20
FAULTS = 3
"""A batch that fails so often by a fault of ours is given up, until somebody has it tried again."""

MOST_OPEN = 100
"""Batches of one workspace that are not over."""


@dataclass(frozen=True, slots=True)
class Load:
    """What lines take of a server.

    Args:
        asked: of them, now.
        places: that there are for them, now.
        crowded: clients have the KV memory.
    """

    asked: int
    places: int
    crowded: bool


class Worker:
    """See the module. Belongs to the event loop.

    Args:
        store: where batches are; closed in the end.
        service: whose model answers.
        embeddings: what makes vectors.
        space: bytes that the files of one workspace may take.
        most: lines of a batch.
        hook: who is told of batches that are over.
    """

    def __init__(
        self,
        store: Store,
        service: "Service",
        embeddings: "Embeddings",
        *,
        space: int,
        most: int,
        hook: Hook | None = None,
    ) -> None:
        self.store = store
        self.space = space
        self.max_file = MAX_FILE
        self._service = service
        self._answer = LineAnswers(
            service.runtime,
            service.served,
            embeddings,
            service.accounts,
            service.metrics.line_answered,
        )
        self._places = Places(self._room, service.share_of)
        self._runner = Runner(
            store,
            Rules(URLS, service.served.max_body, most),
            self._answers,
            self._places,
            store.files.path,
            listed=True,
            watch=self._watch,
        )
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._paces: dict[str, Pace] = {}
        price = service.config.batch_price
        self._price = None if price is None else Price.read(price)
        self._again: dict[str, Batch] = {}
        self._closing = asyncio.Event()
        self._crowded = False
        self._webhooks = None if hook is None else Webhooks(store, hook)
        self._beside: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Go on with what is not over."""
        self._beside.append(asyncio.create_task(self._look()))
        if self._webhooks is not None:
            self._beside.append(asyncio.create_task(self._webhooks.deliver()))
        await self._take_up()
        if self.store.shared:
            self._beside.append(asyncio.create_task(self._follow()))

    async def _take_up(self) -> None:
        for batch in await self.store.do(self.store.batches.open):
            if batch.id not in self._tasks:
                self.add(batch)

    async def _follow(self) -> None:
        """Batches that other servers were given, or told to go on with."""
        while True:
            await asyncio.sleep(FOLLOW_S)
            try:
                await self._take_up()
            except OSError as error:
                log.warning("batches of other servers are not known now: %s", error)

    def add(self, batch: Batch) -> None:
        """Work on it, now or when there is room."""
        if self._closing.is_set():
            return
        if batch.id in self._tasks:
            self._again[batch.id] = batch  # it may just have ended
            return
        task = self._tasks[batch.id] = asyncio.create_task(self._work(batch.id))
        task.add_done_callback(partial(self._worked, batch.id))

    def _worked(self, id: str, task: asyncio.Task[None]) -> None:
        del self._tasks[id]
        self._paces.pop(id, None)
        if (batch := self._again.pop(id, None)) is not None:
            self.add(batch)

    def _watch(self, batch: Batch) -> None:
        """On the loop: it has come so far."""
        if batch.id not in self._paces:
            pace = self._paces[batch.id] = Pace(batch, price=self._price)
            pace.on(self._service.runtime.runtime.device_info.backend)
        self._paces[batch.id].watch(batch)

    def standing(self, batch: Batch) -> Standing | None:
        """How it goes on; None: it does not."""
        pace = self._paces.get(batch.id)
        return None if pace is None else pace.standing

    @property
    def load(self) -> Load:
        """What lines take of the server, now."""
        return Load(self._places.inside, max(0, self._room()), self._crowded)

    async def cancel(self, batch: Batch) -> Batch:
        found = await self._runner.end(batch.id, "cancelled")
        assert found is not None, "it is there"
        self.add(found)
        return found

    def stop(self) -> None:
        """Ask no more: what was answered is kept, and the next server goes on from there."""
        self._closing.set()
        self._runner.stop()

    async def close(self) -> None:
        self.stop()
        for task in self._beside:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        await asyncio.to_thread(self.store.close)

    async def _work(self, id: str) -> None:
        faults = 0
        while not self._closing.is_set():
            try:
                await self._runner.run(id)
                return
            except (OSError, KvrtError) as error:
                log.warning("batch %s cannot go on now: %s", id, type(error).__name__)
            except Exception:  # a fault of ours: other batches go on
                log.exception("batch %s failed", id)
                faults += 1
            if not self._service.lives:
                return
            if faults >= FAULTS and await self._given_up(id):
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S):
                    await self._closing.wait()

    async def _given_up(self, id: str) -> bool:
        """Whether it is kept that it failed."""
        problem = Problem("internal_error", "the server failed; its log says where")
        try:
            await self.store.do(self.store.batches.give_up, id, problem)
        except OSError as error:
            log.warning("that batch %s failed cannot be kept: %s", id, type(error).__name__)
            return False
        return True

    @contextlib.asynccontextmanager
    async def _answers(self, kind: Kind) -> AsyncIterator[Answer]:
        yield self._answer

    def _room(self) -> int:
        """Places that clients leave."""
        if self._crowded:
            return 0
        most = max(1, int(self._service.runtime.runtime.config.max_running * SHARE))
        return most - self._service.gate.inside

    async def _look(self) -> None:
        """Clients come and go, and files have their time."""
        loop = asyncio.get_running_loop()
        swept = 0.0
        while True:
            self._crowded = usage(self._service.runtime.runtime.stats()) > SHARE
            self._places.look()
            if loop.time() - swept > SWEEP_S:
                swept = loop.time()
                await self._sweep()
            await asyncio.sleep(LOOK_S)

    async def _sweep(self) -> None:
        store = self.store
        try:
            for id in await store.do(store.files.expired):
                if not await store.do(store.batches.uses, id):
                    await store.do(store.files.delete, id)
        except OSError as error:
            log.warning("files whose time is over cannot be deleted: %s", type(error).__name__)
