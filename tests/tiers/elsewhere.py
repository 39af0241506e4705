"""Stores of pages behind real sockets: real ones, such as lie, and ways there that break."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from kvrt.kv.tiers.format import PageFormat
from kvrt.kv.tiers.names import StoredName
from kvrt.kv.tiers.remote.client import RemoteStore
from kvrt.kv.tiers.remote.server import StoreServer
from kvrt.kv.tiers.remote.shelves import MemoryShelves, Shelves
from kvrt.net.address import Address

from .pages import FORM, blank, body

KEY = b"the key of all who share pages"
Behave = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def until(happens: Callable[[], object], seconds: float = 10.0) -> bool:
    """Whether it does in time."""
    deadline = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


@contextmanager
def _in_a_loop(
    work: Callable[[asyncio.Event, Callable[[Address], None]], Awaitable[None]],
) -> Iterator[Address]:
    """Something that listens, in a thread of its own."""
    begun = threading.Event()
    found: list[Address] = []
    loop = asyncio.new_event_loop()
    ended = asyncio.Event()

    def begin(address: Address) -> None:
        found.append(address)
        begun.set()

    async def run() -> None:
        await work(ended, begin)

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    assert begun.wait(10), "it does not listen"
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)
        assert not thread.is_alive(), "a store does not end"
        loop.close()


@contextmanager
def served(
    shelves: Shelves | None = None, key: bytes = KEY, port: int = 0, patience: float = 5.0
) -> Iterator[Address]:
    """A store, at the address that is given."""
    kept = MemoryShelves(64 << 20) if shelves is None else shelves

    async def work(ended: asyncio.Event, begin: Callable[[Address], None]) -> None:
        server = StoreServer(kept, key, patience=patience)
        async with server.listening(Address("127.0.0.1", port)) as address:
            begin(address)
            await ended.wait()

    with _in_a_loop(work) as address:
        yield address


@contextmanager
def pretended(behave: Behave) -> Iterator[Address]:
    """Something else in the place of a store."""

    async def work(ended: asyncio.Event, begin: Callable[[Address], None]) -> None:
        running: set[asyncio.Task[None]] = set()

        async def come(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            running.add(asyncio.current_task())  # type: ignore[arg-type]
            with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
                await behave(reader, writer)
            writer.transport.abort()

        server = await asyncio.start_server(come, "127.0.0.1", 0)
        begin(Address(*server.sockets[0].getsockname()[:2]))
        await ended.wait()
        server.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    with _in_a_loop(work) as address:
        yield address


class Way:
    """What goes between two ends: passed on, changed or cut at a byte of one direction.

    Args:
        to: where it leads.
    """

    def __init__(self, to: Address) -> None:
        self._to = to
        self.back = False
        """The direction: from the store, or to it."""
        self.cut_at: int | None = None
        """The byte before which both ends lose each other."""
        self.stall_at: int | None = None
        """The byte before which nothing more comes."""
        self.flip_at: int | None = None
        """The byte of which a bit is another."""
        self.passed = {False: 0, True: 0}

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        out_reader, out_writer = await asyncio.open_connection(self._to.host, self._to.port)
        self.passed = {False: 0, True: 0}
        try:
            ways = [
                asyncio.create_task(self._pass(reader, out_writer, back=False)),
                asyncio.create_task(self._pass(out_reader, writer, back=True)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        finally:
            out_writer.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, back: bool
    ) -> None:
        while piece := bytearray(await reader.read(1 << 16)):
            at, end = self.passed[back], self.passed[back] + len(piece)
            self.passed[back] = end
            if back is self.back:
                if self.flip_at is not None and at <= self.flip_at < end:
                    piece[self.flip_at - at] ^= 0x10
                for limit, cuts in ((self.cut_at, True), (self.stall_at, False)):
                    if limit is not None and end > limit:
                        writer.write(piece[: max(0, limit - at)])
                        await writer.drain()
                        if cuts:
                            return
                        await asyncio.sleep(3600)
            writer.write(piece)
            await writer.drain()


@contextmanager
def remote(
    address: Address, form: PageFormat = FORM, key: bytes = KEY, **options: float
) -> Iterator[RemoteStore]:
    """Somebody who shares pages. It connects at once, or in a moment."""
    store = RemoteStore(address, key, form, **{"retry": 0.01, "warn_every": 0.0, **options})
    try:
        yield store
    finally:
        assert store.close(1.0), "a thread is left"


def put(store: RemoteStore, name: StoredName, form: PageFormat = FORM) -> bool:
    """Whether the store has the page."""
    ticket = store.store(name, body(name, form))
    assert ticket.wait(10), "a page is neither sent nor given up"
    return ticket.ok


def get(store: RemoteStore, name: StoredName, form: PageFormat = FORM) -> bool:
    """Whether the page came; if it did, it has the right bytes."""
    into = blank(form, name.group)
    ticket = store.fetch(name, into)
    assert ticket.wait(10), "a page neither comes nor is missed"
    if ticket.ok:
        assert (into == body(name, form)).all(), "a wrong page"
    return ticket.ok


def connected(store: RemoteStore) -> bool:
    return until(lambda: store.stats().connected)


def stranger(address: Address) -> socket.socket:
    """A bare connection."""
    found = socket.create_connection((address.host, address.port), timeout=10)
    found.settimeout(10)
    return found
