"""A store of pages: keeps what it is sent, tells everybody of it, gives what it is asked for.

    connection  -- hello, proofs --> all names --> [ request --> answer ] ... in their order
                                                    HAS and LOST, as pages come and go

What one connection does costs that one: its requests are taken one at a time, its answers wait
until it takes them, and one that neither sends nor takes what is due in time is closed.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable

from kvrt.errors import StoreError
from kvrt.kv.tiers.format import PageFormat
from kvrt.kv.tiers.names import StoredName
from kvrt.kv.tiers.remote.frames import (
    MOST_IDS,
    SLOWEST,
    Frame,
    Kind,
    Link,
    Refused,
    Seals,
    id_from,
    id_of,
    name_in,
    welcome,
    what_is_forgotten,
)
from kvrt.kv.tiers.remote.shelves import Shelf, Shelves, chosen
from kvrt.net.address import Address

log = logging.getLogger(__name__)

PATIENCE_S = 5.0
"""For what is due: proofs, the rest of a frame that has begun, taking an answer."""

READ_BYTES = 1 << 18
"""That are read of a connection before anybody asks for them."""

SILENCE_S = 30.0
"""A runtime has something to say more often than that."""

MOST_LINKS, MOST_STRANGERS = 1024, 64
"""Connections at once, and of these, such as have not shown yet that they have the key."""

MOST_NEWS = 1 << 16
"""Pages that a connection is to be told of: one that does not take them is closed, and told of all
when it comes again."""

WARN_EVERY_S = 60.0

TIDY_S = 0.25
"""Between two looks at what has gone."""

REQUESTS = (Kind.PUT, Kind.GET, Kind.REMOVE, Kind.FORGET, Kind.PING)


class StoreServer:
    """See the module. Belongs to an event loop.

    Args:
        shelves: what it keeps; whoever made them closes them.
        key: that runtimes must have.
        patience: see `PATIENCE_S`.
    """

    def __init__(self, shelves: Shelves, key: bytes, *, patience: float = PATIENCE_S) -> None:
        self._shelves = shelves
        self._key = key
        self._patience = patience
        self._strangers = 0
        self._next_warning = 0.0
        self._visits: dict[PageFormat, set[_Visit]] = {}
        self._open: set[asyncio.StreamWriter] = set()

    @contextlib.asynccontextmanager
    async def listening(self, address: Address) -> AsyncIterator[Address]:
        """Meanwhile, runtimes can connect; where, is what is given.

        Args:
            address: where to listen; port 0 is any that is free.

        Raises:
            OSError: it cannot be had.
        """
        server = await asyncio.start_server(
            self._come, address.host, address.port, limit=READ_BYTES
        )
        tidying = asyncio.create_task(self._tidy())
        try:
            yield Address(*server.sockets[0].getsockname()[:2])
        finally:
            tidying.cancel()
            server.close()
            for writer in [*self._open]:
                writer.transport.abort()
            while self._open:
                await asyncio.sleep(0.01)

    async def _come(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection, from its beginning to its end."""
        peer = writer.get_extra_info("peername")
        self._open.add(writer)
        try:
            if len(self._open) > MOST_LINKS or self._strangers >= MOST_STRANGERS:
                raise Refused("there are too many connections")
            await self._visit(reader, writer)
        except (Refused, StoreError) as error:
            self._warn(f"a connection from {peer} is closed: {error}")
        except (EOFError, OSError, TimeoutError):
            log.debug("a connection from %s has ended", peer)
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._strangers += 1
        try:
            async with asyncio.timeout(self._patience):
                link, proof = await welcome(reader, writer, self._key)
        finally:
            self._strangers -= 1
        seals = Seals(self._key, link.form)
        shelf = await asyncio.to_thread(self._shelves.of, link.form, seals)
        visit = _Visit(link, shelf, seals, self._patience, self._tell)
        visits = self._visits.setdefault(link.form, set())
        visits.add(visit)
        try:
            writer.write(proof)
            await visit.attend()
        finally:
            visits.discard(visit)

    def _warn(self, what: str) -> None:
        now = time.monotonic()
        level = logging.WARNING if now >= self._next_warning else logging.DEBUG
        if level == logging.WARNING:
            self._next_warning = now + WARN_EVERY_S
        log.log(level, "%s; there may be more of it: this is said once in %g s", what, WARN_EVERY_S)

    def _tell(self, visit: "_Visit", kind: Kind, ids: Iterable[bytes]) -> None:
        """All others that have pages of the same model."""
        for other in self._visits.get(visit.form, set()) - {visit}:
            other.hear(kind, ids)

    async def _tidy(self) -> None:
        """Tell of what has gone."""
        while True:
            await asyncio.sleep(TIDY_S)
            for visits in [*self._visits.values()]:
                if visits and (gone := await asyncio.to_thread(next(iter(visits)).shelf.gone)):
                    for visit in visits:
                        visit.hear(Kind.LOST, gone)


class _Visit:
    """A runtime that is connected.

    Args:
        link: to it.
        shelf: of its model.
        seals: of its pages.
        patience: seconds.
        tell: all others of pages.
    """

    def __init__(
        self,
        link: Link,
        shelf: Shelf,
        seals: Seals,
        patience: float,
        tell: "Callable[[_Visit, Kind, Iterable[bytes]], None]",
    ) -> None:
        self.form = link.form
        self.shelf = shelf
        self._link, self._seals, self._patience, self._tell = link, seals, patience, tell
        self._news: deque[tuple[Kind, bytes]] = deque((Kind.HAS, id) for id in shelf.ids())
        self._most_news = MOST_NEWS + len(self._news)
        self._heard = asyncio.Event()
        self._heard.set()

    def hear(self, kind: Kind, ids: Iterable[bytes]) -> None:
        """It is to be told of pages."""
        self._news.extend((kind, id) for id in ids)
        self._heard.set()
        if len(self._news) > self._most_news:
            self._link.cut()

    async def attend(self) -> None:
        """Until it leaves, or does what it may not."""
        telling = asyncio.create_task(self._pass_news())
        answering = asyncio.create_task(self._answer_all())
        try:
            await asyncio.wait({telling, answering}, return_when=asyncio.FIRST_COMPLETED)
            for task in (answering, telling):
                if task.done():
                    task.result()
        finally:
            for task in (telling, answering):
                task.cancel()
            for task in (telling, answering):
                with contextlib.suppress(Exception, asyncio.CancelledError):
                    await task

    async def _pass_news(self) -> None:
        while True:
            await self._heard.wait()
            self._heard.clear()
            while self._news:
                kind, ids = self._news[0][0], list[bytes]()
                while self._news and self._news[0][0] is kind and len(ids) < MOST_IDS:
                    ids.append(self._news.popleft()[1])
                async with asyncio.timeout(self._patience):
                    await self._link.tell(kind, ids)

    async def _answer_all(self) -> None:
        while True:
            async with asyncio.timeout(SILENCE_S):
                frame = await self._link.read(REQUESTS)
            match frame.kind:
                case Kind.PUT:
                    await self._put(frame)
                case Kind.GET:
                    await self._get(frame)
                case Kind.REMOVE:
                    await self._drop([id_from(frame.fields, frame.group)])
                case Kind.FORGET:
                    scope = what_is_forgotten(frame.fields)
                    await self._drop(await asyncio.to_thread(chosen, self.shelf, *scope))
                case Kind.PING:
                    await self._answer(Kind.DONE)

    async def _put(self, frame: Frame) -> None:
        async with asyncio.timeout(self._time_for(frame.group)):
            body = await self._link.body(frame.group)
        page, seal = name_in(frame.fields, self.form.page_size)
        name = StoredName(page, frame.group)

        def keep() -> bool:
            return self._seals.fits(name, body, seal) and self.shelf.put(name, body, seal)

        kept = await asyncio.to_thread(keep)
        if kept:  # told before it is answered: who sent it may tell others that it is there
            self._tell(self, Kind.HAS, [id_of(name)])
        await self._answer(Kind.DONE if kept else Kind.NONE)

    async def _get(self, frame: Frame) -> None:
        found = await asyncio.to_thread(self.shelf.get, id_from(frame.fields, frame.group))
        if found is None:
            await self._answer(Kind.NONE)
            return
        body, seal = found
        async with asyncio.timeout(self._time_for(frame.group)):
            await self._link.send(Kind.PAGE, seal, frame.group, memoryview(body))

    def _time_for(self, group: int) -> float:
        """Seconds for a page of the group to come or go."""
        return self._patience + self.form.sizes[group] / SLOWEST

    async def _drop(self, ids: list[bytes]) -> None:
        await asyncio.to_thread(self.shelf.remove, ids)
        await self._answer(Kind.DONE)

    async def _answer(self, kind: Kind) -> None:
        async with asyncio.timeout(self._patience):
            await self._link.send(kind)
