"""The offload scheduler: moves KV pages between a device and the stores outside it.

    save    page -- executor --> host slot ------------> disk          before the page is reused
    share   page -- executor --> host slot ------------> elsewhere     as soon as it has a name
    fetch   page <-- executor -- host slot <------------ disk, or elsewhere    into pages just taken

Nothing waits for a disk but a host memory that is full of pages still to be written, and nothing
for a store elsewhere but the request whose pages are fetched from there. A page is reused only
after its copy to the host is done, and read only after its copy to the device is: all
copies carry tickets, and each one begins behind the compute that was submitted before it.

It belongs to the engine's thread, which calls `poll` between steps.
"""

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from kvrt.executor.interface import Fetch, PageMemory, Save
from kvrt.kv.index.cost import MoveCost
from kvrt.kv.seq import Seq
from kvrt.kv.tiers.ahead import ReadAhead
from kvrt.kv.tiers.disk import DiskStats, DiskStore
from kvrt.kv.tiers.host import HostPage, HostStats, HostStore
from kvrt.kv.tiers.names import PageName, StoredName, tenant_of
from kvrt.kv.tiers.remote.client import RemoteStore
from kvrt.kv.tiers.remote.desk import RemoteStats
from kvrt.kv.tiers.remote.frames import Scope
from kvrt.kv.tiers.stores import Read, Stores
from kvrt.spi import Ticket

_WINDOW = 32
"""Pages of one sequence on their way at once: enough to keep a disk's queue full."""

_NAP_S = 0.001
"""While a fetch waits for a host slot, and for no copy of its own."""

_PATIENCE_S = 2.0
"""A disk that takes longer to write one page than this is not waited for; the page is dropped."""


@dataclass(frozen=True, slots=True)
class OffloadStats:
    """Since the runtime was made.

    Args:
        saved_pages: copied off the device.
        fetched_pages: copied back.
        missed_pages: that were to come back, and did not: their tokens were computed.
        dropped_pages: not saved, because no host memory came free in time.
        host: of the host memory.
        disks: of each folder.
        remote: of a store elsewhere; None: there is none.
        sending: pages that are on their way there.
    """

    saved_pages: int
    fetched_pages: int
    missed_pages: int
    dropped_pages: int
    host: HostStats
    disks: tuple[DiskStats, ...]
    remote: RemoteStats | None = None
    sending: int = 0


@dataclass(slots=True, eq=False)
class _Move:
    """One page on its way to the device: from behind to a host slot, then from there on."""

    index: int
    host: HostPage
    ticket: Ticket
    read: Read | None = None  # the same ticket, while it is not in the slot


@dataclass(slots=True, eq=False)
class _Fetch:
    """The pages that one sequence waits for; without one, those before it may be of use."""

    names: Sequence[StoredName]
    pages: Sequence[int]
    next: int = 0
    moving: list[_Move] = field(default_factory=list)
    lost: int | None = None  # the first page that cannot be had

    @property
    def usable(self) -> int:
        """How many of the first pages hold what they should, once it has ended."""
        return len(self.names) if self.lost is None else self.lost

    @property
    def ended(self) -> bool:
        return self.next >= self.usable and not self.moving


class Offload:
    """See the module.

    Args:
        executor: whose pages they are, and who moves them.
        host: slots that copies go through, and a tier if it is large.
        cost: told how fast fetches were.
        disk: where pages go that host memory has no room for; None: nowhere.
        remote: where pages go that others may want, and theirs come from; None: nowhere.
        is_tier: pages may stay in host memory; else they only go through it.
        write_at_once: pages go on to disk as soon as they are in host memory, not only when that
            fills up.
        write_through: the engine is to save the pages of a request when it ends.
    """

    def __init__(
        self,
        executor: PageMemory,
        host: HostStore,
        cost: MoveCost,
        disk: DiskStore | None = None,
        remote: RemoteStore | None = None,
        *,
        is_tier: bool = False,
        write_at_once: bool = False,
        write_through: bool = False,
    ) -> None:
        self.stores = Stores(host, disk, remote, write_at_once=write_at_once)
        """Where pages are outside the device."""
        self.write_through = write_through
        self._executor = executor
        self._host = host
        self._cost = cost
        self._is_tier = is_tier
        self._saves = is_tier or disk is not None or remote is not None
        self._leaving: list[tuple[HostPage, Ticket]] = []
        self._fetches: dict[Seq, _Fetch] = {}
        self._spent = 0.0  # seconds, on fetches that have not ended
        self._ahead = ReadAhead(self.stores)
        self._saved = self._fetched = self._missed = self._dropped = 0

    # --- off the device ----------------------------------------------------------------------

    def save(self, pages: Iterable[tuple[StoredName, int]]) -> None:
        """Copy pages off the device, those that no store has. They may be reused when it returns.

        Raises:
            DeviceError: a copy failed.
        """
        saves: list[tuple[HostPage, Save]] = []
        for name, page in pages if self._saves else ():
            if name in self.stores:
                continue
            slot = self.stores.reserve(name, _PATIENCE_S)
            if slot is None and saves:  # all of the host memory may be theirs
                self._carry_out(saves)
                slot = self.stores.reserve(name, _PATIENCE_S)
            if slot is None:
                self._dropped += 1
                continue
            saves.append((slot, Save(page, slot.data, name.group)))
        self._carry_out(saves)
        self.stores.demote()

    @property
    def shares(self) -> bool:
        """Whether others may want pages, so that `share` is to be called."""
        return self.stores.remote is not None

    def share(self, pages: Iterable[tuple[StoredName, int]]) -> None:
        """Begin to copy pages off the device, those that no store has, for others. What they hold
        must not change before `settle`.

        Raises:
            DeviceError: a copy failed.
        """
        saves: list[tuple[HostPage, Save]] = []
        for name, page in pages:
            if name in self.stores:
                continue
            slot = self.stores.reserve(name, 0.0)
            if slot is None:
                self._dropped += 1
            else:
                saves.append((slot, Save(page, slot.data, name.group)))
        if saves:
            tickets = self._executor.copies([save for _, save in saves])
            self._leaving += zip((slot for slot, _ in saves), tickets, strict=True)

    def settle(self, *, wait: bool = True) -> None:
        """What `share` has begun is done when it returns.

        Args:
            wait: for that; else take in what is done.

        Raises:
            DeviceError: a copy failed.
        """
        while self._leaving and (wait or self._leaving[0][1].done()):
            slot, ticket = self._leaving.pop(0)
            ticket.wait()
            self.stores.commit(slot)
            self._saved += 1

    def _carry_out(self, saves: list[tuple[HostPage, Save]]) -> None:
        """Copy to the host, and wait for it: the pages can be found there then."""
        if not saves:
            return
        tickets = self._executor.copies([save for _, save in saves])
        for (slot, _), ticket in zip(saves, tickets, strict=True):
            ticket.wait()
            self.stores.commit(slot)
        self._saved += len(saves)
        saves.clear()

    # --- back to the device ------------------------------------------------------------------

    def __contains__(self, name: StoredName) -> bool:
        """Whether the page could be fetched."""
        return name in self.stores

    def prefetch(self, seq: Seq, names: Iterable[StoredName]) -> None:
        """Bring pages from behind to host memory, as a request that waits will need them there."""
        if self._is_tier:
            self._ahead.want(seq, names)

    def expect_no_more(self, seq: Seq) -> None:
        """The request waits no longer: it runs, or has ended."""
        self._ahead.forget(seq)

    def fetch(self, seq: Seq, names: Sequence[StoredName], pages: Sequence[int]) -> None:
        """Begin to bring pages back for a sequence, those of its first tokens first, into `pages`
        of their groups."""
        fetch = self._fetches[seq] = _Fetch(names, pages)
        self._begin(fetch)

    def poll(self) -> list[tuple[Seq, list[tuple[int, int]]]]:
        """Carry everything on. Returns the sequences whose fetch has ended, and for each the pages,
        each after its group, that do not hold what they should: the first one that could not be
        had, and all that were to come after it.

        Raises:
            DeviceError: a copy failed.
        """
        started = time.perf_counter()
        self.settle(wait=False)
        self.stores.reap()
        ended, nbytes = [], 0
        for seq, fetch in list(self._fetches.items()):
            for move in list(fetch.moving):
                self._advance(fetch, move)
            self._begin(fetch)
            if fetch.ended:
                del self._fetches[seq]
                self._fetched += fetch.usable
                self._missed += len(fetch.names) - fetch.usable
                groups = [name.group for name in fetch.names]
                nbytes += sum(self._host.sizes[group] for group in groups[: fetch.usable])
                pages = list(zip(groups, fetch.pages, strict=True))
                ended.append((seq, pages[fetch.usable :]))
        self._account(started, nbytes)
        self._ahead.poll()
        self.stores.demote()
        return ended

    @property
    def fetching(self) -> Collection[Seq]:
        """Sequences for which pages are on their way, into places that are known already."""
        return self._fetches.keys()

    @property
    def busy(self) -> bool:
        """Whether a page moves, so that `poll` has something to do."""
        return self._moves_something() or bool(self._fetches or self._leaving)

    def wait(self) -> None:
        """Wait a moment for something that a fetch needs; there is nothing else to do."""
        tickets = [move.ticket for fetch in self._fetches.values() for move in fetch.moving]
        if tickets:
            started = time.perf_counter()
            tickets[0].wait(0.01)
            self._account(started, 0)
        elif self._fetches:
            time.sleep(_NAP_S)

    def _account(self, started: float, nbytes: int) -> None:
        """The engine spent the time since `started` on fetches, of which so much has ended."""
        self._spent += time.perf_counter() - started
        if nbytes:
            self._cost.fetched(nbytes, self._spent)
        if nbytes or not self._fetches:
            self._spent = 0.0

    def cancel(self, seq: Seq) -> None:
        """The sequence does not want its pages any more; nothing is written to them after this."""
        self.expect_no_more(seq)
        fetch = self._fetches.pop(seq, None)
        for move in fetch.moving if fetch is not None else ():
            if move.read is not None:
                self.stores.abandon(move.host, move.read)
            else:
                move.ticket.wait()
                self._host.unpin(move.host)

    def _begin(self, fetch: _Fetch) -> None:
        """Start as many pages of a fetch as may move at once."""
        while fetch.next < fetch.usable and len(fetch.moving) < _WINDOW:
            name = fetch.names[fetch.next]
            host = self._host.find(name)
            if host is not None:
                self._host.pin(host)
                fetch.moving.append(self._to_device(fetch, fetch.next, host))
            else:
                store = self.stores.behind(name)
                host = self.stores.reserve(name, 0.0) if store is not None else None
                if store is None or (host is None and not self._moves_something()):
                    fetch.lost = fetch.next
                if store is None or host is None:
                    return
                read = store.fetch(name, host.data)
                fetch.moving.append(_Move(fetch.next, host, read, read))
            fetch.next += 1

    def _moves_something(self) -> bool:
        """Whether a host slot will come free."""
        fetches = self._fetches.values()
        waits = self.stores.busy or self._ahead.busy
        return bool(waits or any(fetch.moving for fetch in fetches))

    def _advance(self, fetch: _Fetch, move: _Move) -> None:
        hung = move.read is not None and move.read.overdue()
        if not hung and not _arrived(move.ticket):
            return
        fetch.moving.remove(move)
        if move.read is None:
            self._host.unpin(move.host)
            return
        wanted = fetch.lost is None or move.index < fetch.lost
        if wanted and move.read.ok:
            self._host.pin(move.host)
            self._host.commit(move.host)
            fetch.moving.append(self._to_device(fetch, move.index, move.host))
            return
        self.stores.abandon(move.host, move.read)
        if wanted:
            fetch.lost = move.index

    def _to_device(self, fetch: _Fetch, index: int, host: HostPage) -> _Move:
        # What ran before may have read what the page held then: it begins behind that.
        move = Fetch(fetch.pages[index], host.data, fetch.names[index].group)
        (ticket,) = self._executor.copies([move])
        return _Move(index, host, ticket)

    # --- as a whole --------------------------------------------------------------------------

    def remove(self, pages: Iterable[PageName]) -> None:
        """Drop the pages of all groups from all stores; those on their way back do not arrive."""
        gone = set(pages)
        for entry in [entry for entry in self._leaving if entry[0].name.page in gone]:
            self._leaving.remove(entry)
            entry[1].wait()
            self._host.unpin(entry[0])
        self.stores.remove(gone)
        self._ahead.remove(gone)
        for fetch in self._fetches.values():
            lost = next((n for n, name in enumerate(fetch.names) if name.page in gone), None)
            if lost is not None:
                fetch.lost = lost if fetch.lost is None else min(lost, fetch.lost)

    def forget_elsewhere(self, root: bytes | None, names: Sequence[PageName]) -> None:
        """Drop pages from a store elsewhere, whose names are not known here: all; those of the
        tenant with this root; or of these, what begins with the pages `names`, or may do so."""
        if (remote := self.stores.remote) is None:
            return
        if root is None:
            remote.forget(Scope.ALL)
        elif names:
            remote.forget(Scope.FROM, tenant_of(root), names[-1].key)
        else:
            remote.forget(Scope.TENANT, tenant_of(root))

    def stats(self) -> OffloadStats:
        moved = self._saved, self._fetched, self._missed, self._dropped
        sending = len(self._leaving) + self.stores.sending
        return OffloadStats(*moved, *self.stores.stats(), sending)

    def close(self) -> None:
        """Wait for what moves, and close the stores.

        Raises:
            DeviceError: a copy failed. The stores are closed all the same.
        """
        try:
            self.settle()
            for seq in list(self._fetches):
                self.cancel(seq)
        finally:
            self.stores.close()


def _arrived(ticket: Ticket) -> bool:
    """Whether what it promises is done. Raises `DeviceError` if that failed."""
    return ticket.done() and ticket.wait()
