"""KV pages that other machines have, without waiting for them."""

import asyncio
import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from kvrt.kv.tiers.blockfile import Bytes
from kvrt.kv.tiers.buffers import bytes_of
from kvrt.kv.tiers.format import PageFormat
from kvrt.kv.tiers.names import StoredName
from kvrt.kv.tiers.remote.desk import Desk, RemoteStats
from kvrt.kv.tiers.remote.frames import (
    Frame,
    Kind,
    Link,
    Refused,
    Scope,
    Seals,
    fields_of,
    forgetting,
    introduce,
)
from kvrt.kv.tiers.remote.owed import RemoteTicket, Talk
from kvrt.net.address import Address

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

PATIENCE_S = 5.0
"""A store that has owed answers for so long, and for as long again as their pages take at
`SLOWEST`, is given up."""

RETRY_S, SHUN_S = 1.0, 30.0
"""Until a store is tried again: one that is not there; and one that was slow, or did what it may
not."""

GLANCE_S = 0.1
"""Between two looks at what is due."""

WINDOW = 32
"""Requests on their way at once."""

ANSWERS = (Kind.DONE, Kind.PAGE, Kind.NONE, Kind.HAS, Kind.LOST)


class RemoteStore:
    """Pages of one model that are in a store elsewhere: every method returns at once, but `close`.

        store   --> queue --> sent, and taken            then others are told of it
        fetch   --> queue --> come and verified, or missed     first, as somebody waits for it

    A thread keeps a connection. While there is none, nothing is found and nothing sent. The store
    is not believed: a page counts only with the seal that its name has, and whatever else it does,
    or does not, ends the connection. It costs whoever waits `patience` seconds at most, or as long
    as its pages take at `SLOWEST`.

    Args:
        address: of the store.
        key: that it must have, too.
        form: of the pages.
        patience: seconds; see `PATIENCE_S`.
        retry, shun: seconds; see `RETRY_S`.
        warn_every: seconds between two warnings.
    """

    def __init__(
        self,
        address: Address,
        key: bytes,
        form: PageFormat,
        *,
        patience: float = PATIENCE_S,
        retry: float = RETRY_S,
        shun: float = SHUN_S,
        warn_every: float = 60.0,
    ) -> None:
        self.address = address
        self._key, self._form, self._seals = key, form, Seals(key, form)
        self._patience, self._retry, self._shun = patience, retry, shun
        self._warn_every, self._next_warning = warn_every, 0.0
        self._desk = Desk()
        self._talk = Talk(patience)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._queued = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="kvrt-remote", daemon=True)
        self._thread.start()

    # --- what anybody may call ----------------------------------------------------------------

    def __contains__(self, name: StoredName) -> bool:
        """Whether a fetch of the page would ask for it."""
        return name in self._desk

    def store(self, name: StoredName, data: "Tensor | Bytes") -> RemoteTicket:
        """Send a page.

        Args:
            name: of the page.
            data: the bytes of a page of its group, contiguous and in host memory; must not change
                until the ticket is done.

        Returns:
            A ticket. Its `ok`: the store has the page.
        """
        ticket = RemoteTicket(Kind.PUT, b"", name, self._body(name, data))
        ticket = self._desk.send(name, ticket)
        self._wake()
        return ticket

    def fetch(self, name: StoredName, into: "Tensor | Bytes") -> RemoteTicket:
        """Ask for a page.

        Args:
            name: of the page.
            into: as many bytes in host memory, contiguous; nobody may use them until the ticket
                is done.

        Returns:
            A ticket. Its `ok`: the page is in `into`; else `into` may hold anything.
        """
        ticket = RemoteTicket(Kind.GET, name.page.key, name, self._body(name, into))
        self._desk.fetch(name, ticket)
        self._wake()
        return ticket

    def remove(self, name: StoredName) -> bool:
        """Drop a page, there and here. Returns whether it was known."""
        known = self._desk.remove(name, RemoteTicket(Kind.REMOVE, name.page.key, name))
        self._wake()
        return known

    def forget(self, scope: Scope, tenant: int = 0, key: bytes = bytes(32)) -> None:
        """Drop pages, there and here: all; a tenant's; or the one with a key, and all that come
        after it."""
        self._desk.ask(RemoteTicket(Kind.FORGET, forgetting(scope, tenant, key)))
        self._wake()

    def stats(self) -> RemoteStats:
        """What it knows, and did."""
        return self._desk.stats()

    def close(self, timeout: float = PATIENCE_S) -> bool:
        """Send what is queued, for `timeout` seconds at most, and drop the rest. Returns whether
        nothing runs any more."""
        deadline = time.monotonic() + timeout
        self._desk.close()
        while self._desk.busy and time.monotonic() < deadline:
            time.sleep(0.005)
        with contextlib.suppress(RuntimeError):  # its loop has ended
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(max(1.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._queued.set)

    # --- in the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._keep())
        finally:
            self._desk.drop_all()
            self._loop.close()

    async def _keep(self) -> None:
        """A connection, and then another one."""
        ending = asyncio.create_task(self._stop.wait())
        while not ending.done():
            connected = asyncio.create_task(self._connected())
            await asyncio.wait({connected, ending}, return_when=asyncio.FIRST_COMPLETED)
            connected.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await connected
            if not ending.done():
                pause = connected.result()
                await asyncio.wait({ending}, timeout=pause)

    async def _connected(self) -> float:
        """One connection, to its end. Returns for how long to make no other."""
        link: Link | None = None
        try:
            async with asyncio.timeout(self._patience):
                reader, writer = await asyncio.open_connection(
                    self.address.host, self.address.port, limit=1 << 20
                )
                try:
                    link = await introduce(reader, writer, self._key, self._form)
                except BaseException:
                    writer.transport.abort()
                    raise
            self._talk = Talk(self._patience)
            self._desk.begin()
            await self._exchange(link)
            return self._retry
        except Refused as error:
            self._warn(str(error))
            return self._shun
        except TimeoutError:
            self._warn("it does not answer in time")
            return self._shun if link is not None else self._retry
        except (OSError, EOFError, UnicodeError) as error:  # the last: of a name that can be none
            self._warn("the connection broke" if link is not None else str(error) or "it is gone")
            return self._retry
        finally:
            if link is not None:
                self._end(link)

    def _end(self, link: Link) -> None:
        """The connection is gone, and with it all that was asked."""
        link.cut()
        self._desk.end(cut=not self._stop.is_set())
        for ticket in self._talk.owed:
            self._desk.settle(ticket, ok=False)
        self._talk.owed.clear()
        self._desk.drop_all()

    async def _exchange(self, link: Link) -> None:
        tasks = {
            asyncio.create_task(work)
            for work in (self._ask_all(link), self._hear_all(link), self._watch())
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self) -> None:
        """Raises `TimeoutError` when the store has owed an answer for too long."""
        while not self._talk.overdue():
            if self._talk.silent():
                self._desk.ask(RemoteTicket(Kind.PING, b""))
                self._queued.set()
            await asyncio.sleep(min(GLANCE_S, self._patience / 10))
        raise TimeoutError

    async def _ask_all(self, link: Link) -> None:
        """Send what is queued, what somebody waits for first."""
        while True:
            ticket = self._next()
            if ticket is None:
                self._queued.clear()
                if (ticket := self._next()) is None:
                    await self._queued.wait()
                    continue
            self._talk.ask(ticket)
            if ticket.kind is Kind.PUT:
                name, body = ticket.page
                fields = fields_of(name.page, self._seals.of(name, body.data))
                await link.send(Kind.PUT, fields, ticket.group, body.data)
            else:
                await link.send(ticket.kind, ticket.fields, ticket.group)

    def _next(self) -> RemoteTicket | None:
        return self._desk.next() if len(self._talk.owed) < WINDOW else None

    async def _hear_all(self, link: Link) -> None:
        while True:
            frame = await link.read(ANSWERS)
            if frame.kind in (Kind.HAS, Kind.LOST):
                self._desk.learn(frame)
                continue
            ticket = self._talk.oldest()
            if ticket is None or (frame.kind is Kind.PAGE) > (ticket.kind is Kind.GET):
                raise Refused("it answers what was not asked")
            if frame.kind is Kind.DONE and ticket.kind is Kind.GET:
                raise Refused("it answers what was not asked")
            ok = frame.kind is not Kind.NONE
            if frame.kind is Kind.PAGE:
                ok = await self._receive(link, frame, ticket)
            self._talk.answered()
            if ticket.kind is Kind.GET and not ok and ticket.name is not None:
                self._desk.missed(ticket.name)
            self._desk.settle(ticket, ok=ok)
            self._queued.set()

    async def _receive(self, link: Link, frame: Frame, ticket: RemoteTicket) -> bool:
        if frame.group != ticket.group:
            raise Refused("it gives a page of other layers")
        name, into = ticket.page
        body = await link.body(frame.group)
        if not self._seals.fits(name, body, frame.fields):
            self._desk.damaged()
            self._warn("a page is not the one that was asked for")
            return False
        into[:] = np.frombuffer(body, np.uint8)
        return True

    def _warn(self, why: str) -> None:
        now = time.monotonic()
        if now < self._next_warning:
            return
        self._next_warning = now + self._warn_every
        log.warning(
            "the store of KV pages at %s is not used for now: %s. Pages are computed; no answer"
            " changes. There may be more of it: this is said once in %g s.",
            self.address,
            why,
            self._warn_every,
        )

    def _body(self, name: StoredName, data: "Tensor | Bytes") -> Bytes:
        return bytes_of(data, self._form.sizes[name.group])
