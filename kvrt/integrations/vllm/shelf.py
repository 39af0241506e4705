"""Which pages are in host memory, or on their way to it, and for whom.

    the worker writes   offer --> [ slot ] -- arrived --> found, and written to disk
    a request asks      look ---> [ slot ] <-- disk       found once it has been read and verified
    the worker reads    lend ---> [ slot ] -- returned    stays there till then

A page counts only when it is in memory and whole, so nobody is promised one that turns out damaged.
What a request was told is there stays until the request has loaded it, or has ended.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto

from kvrt.kv.tiers.disk import PageTicket
from kvrt.kv.tiers.host import HostPage
from kvrt.kv.tiers.names import StoredName
from kvrt.kv.tiers.stores import Stores


class Found(Enum):
    """Where a page is."""

    HERE = auto()
    """In memory."""
    ARRIVING = auto()
    """The worker is writing it."""
    COMING = auto()
    """It may come from disk."""
    NOWHERE = auto()


@dataclass(slots=True, eq=False)
class _Read:
    page: HostPage
    ticket: PageTicket
    requests: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Counts:
    """Pages since the last `Shelf.take_counts`: found in memory, read from disk, lost on the way
    (damaged, or the disk failed), kept, and not kept as there was no room."""

    in_memory: int = 0
    from_disk: int = 0
    lost: int = 0
    kept: int = 0
    refused: int = 0


class Shelf:
    """See the module. Belongs to one thread.

    Args:
        stores: where pages are; host memory is what the worker copies to and from.
    """

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._arriving: dict[StoredName, HostPage] = {}
        self._reads: dict[StoredName, _Read] = {}
        self._held: dict[str, dict[StoredName, HostPage]] = {}
        self._lent: dict[tuple[str, StoredName], HostPage] = {}
        self._stale: list[HostPage] = []
        self._fetched: dict[str, set[StoredName]] = {}
        self._counts = Counts()

    def poll(self) -> None:
        """Take in what was read, and use again what was written."""
        self._stores.reap()
        for name, read in list(self._reads.items()):
            if not (read.ticket.done() or read.ticket.overdue()):
                continue
            del self._reads[name]
            if not read.ticket.ok:
                self._counts.lost += 1
                self._stores.abandon(read.page, read.ticket)
                continue
            self._counts.from_disk += 1
            self._stores.host.commit(read.page)
            for request in read.requests:
                self._hold(name, read.page, request)
                self._fetched.setdefault(request, set()).add(name)

    def look(self, name: StoredName, request: str) -> Found:
        """Where a page is that a request would load; if it is on disk, it comes."""
        if name in self._held.get(request, ()):
            return Found.HERE
        if (page := self._stores.host.find(name)) is not None:
            self._counts.in_memory += 1
            self._hold(name, page, request)
            return Found.HERE
        if name in self._arriving:
            return Found.ARRIVING
        if (read := self._reads.get(name)) is not None:
            read.requests.add(request)
            return Found.COMING
        if (disk := self._stores.on_disk(name)) is None:
            return Found.NOWHERE
        page = self._stores.reserve(name, 0.0)
        if page is None:  # what is read now, or written, will leave its place; what is held, not
            return Found.COMING if self._reads or self._stores.busy else Found.NOWHERE
        self._reads[name] = _Read(page, disk.fetch(name, page.data), {request})
        return Found.COMING

    def fetched(self, name: StoredName, request: str) -> bool:
        """Whether a page was read from disk for a request."""
        return name in self._fetched.get(request, ())

    def lend(self, names: Iterable[StoredName], request: str) -> list[HostPage]:
        """The worker is to read these; the request was told that they are there. What else it holds
        it needs no more."""
        held = self._held.pop(request, {})
        lent = []
        for name in names:
            page = self._lent[request, name] = held.pop(name)
            lent.append(page)
        self._let_go(held)
        return lent

    def returned(self, names: Iterable[StoredName], request: str) -> None:
        """The worker has read them."""
        self._settle()
        for name in names:
            if (page := self._lent.pop((request, name), None)) is not None:
                self._stores.host.unpin(page)

    def offer(self, names: Iterable[StoredName]) -> list[HostPage]:
        """The worker has these pages. Returns where it is to write those of them, the first ones,
        that are not there and have room."""
        places = []
        for name in names:
            if name in self._stores or name in self._arriving or name in self._reads:
                continue
            if (page := self._stores.reserve(name, 0.0)) is None:
                self._counts.refused += 1
                break
            self._arriving[name] = page
            places.append(page)
        return places

    def arrived(self, names: Iterable[StoredName], whole: bool = True) -> None:
        """The worker has written them, or has not."""
        self._settle()
        for name in names:
            page = self._arriving.pop(name, None)
            if page is not None and whole:
                self._counts.kept += 1
                self._stores.commit(page)
            elif page is not None:
                self._stores.host.unpin(page)

    def touch(self, names: Iterable[StoredName]) -> None:
        """They were of use."""
        for name in names:
            self._stores.host.find(name)

    def ended(self, request: str) -> None:
        """A request needs nothing more; what the worker reads for it, it reads on."""
        self._let_go(self._held.pop(request, {}))
        self._fetched.pop(request, None)
        for read in self._reads.values():
            read.requests.discard(request)

    def forget(self) -> None:
        """No page is what its name says any more: the weights have changed, say."""
        for read in self._reads.values():
            self._stores.abandon(read.page, read.ticket)
        for held in self._held.values():
            self._let_go(held)
        self._stale += [*self._arriving.values(), *self._lent.values()]
        for mine in (self._reads, self._held, self._arriving, self._lent):
            mine.clear()
        self._stores.remove({name.page for name in self._stores.names()})

    def take_counts(self) -> Counts:
        """What happened since this was called last."""
        counts, self._counts = self._counts, Counts()
        return counts

    def close(self) -> None:
        """What is to be written is written, as far as the disk is quick."""
        self._stores.close()

    def _hold(self, name: StoredName, page: HostPage, request: str) -> None:
        held = self._held.setdefault(request, {})
        if name not in held:
            self._stores.host.pin(page)
            held[name] = page

    def _let_go(self, held: dict[StoredName, HostPage]) -> None:
        for page in held.values():
            self._stores.host.unpin(page)

    def _settle(self) -> None:
        """The worker does one thing after the other: what it was about when all was forgotten is
        done once it reports of anything later."""
        for page in self._stale:
            self._stores.host.unpin(page)
        self._stale.clear()
