"""The offload scheduler: moves KV pages between a device and the stores outside it.

    save    page -- copier --> host slot ------------> disk          before the page is reused
    fetch   page <-- copier -- host slot <------------ disk          into pages just taken

Nothing waits for a disk but a host memory that is full of pages still to be written. A page is
reused only after its copy to the host is done, and read only after its copy to the device is: all
copies carry tickets, and each one begins behind the compute that was submitted before it.

It belongs to the engine's thread, which calls `poll` between steps.
"""

import itertools
import logging
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from kvrt.cache import KVCache
from kvrt.pages.referrers import Row
from kvrt.sched.cost import MoveCost
from kvrt.sched.seq import Seq
from kvrt.spi import Device, Ticket
from kvrt.tiers.disk import DiskStats, DiskStore, PageTicket
from kvrt.tiers.host import HostPage, HostStats, HostStore
from kvrt.tiers.names import PageName

log = logging.getLogger(__name__)

_WINDOW = 32
"""Pages of one sequence on their way at once: enough to keep a disk's queue full."""

_CLEAN_SHARE = 8
"""One in so many host slots is kept ready for others: its page is on disk, or it is free."""

_AHEAD = 8
"""Pages read from disk at once for requests that still wait for their turn."""

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
    """

    saved_pages: int
    fetched_pages: int
    missed_pages: int
    dropped_pages: int
    host: HostStats
    disks: tuple[DiskStats, ...]


@dataclass(slots=True, eq=False)
class _Move:
    """One page on its way to the device: from disk to a host slot, then from there on."""

    index: int
    host: HostPage
    ticket: Ticket
    read: PageTicket | None = None  # the same ticket, while it is the disk's


@dataclass(slots=True, eq=False)
class _Fetch:
    """The pages that one sequence waits for."""

    names: Sequence[PageName]
    row: Row
    next: int = 0
    moving: list[_Move] = field(default_factory=list)
    lost: int | None = None  # the first page that cannot be had

    @property
    def ended(self) -> bool:
        begun = self.lost is not None or self.next == len(self.names)
        return begun and not self.moving

    @property
    def usable(self) -> int:
        return self.next if self.lost is None else self.lost


class Offload:
    """See the module.

    Args:
        device: whose copier moves the pages.
        cache: the pages.
        host: slots that copies go through, and a tier if it is large.
        cost: told how fast fetches were.
        disk: where pages go that host memory has no room for; None: nowhere.
        is_tier: pages may stay in host memory; else they only go through it.
        write_at_once: pages go on to disk as soon as they are in host memory, not only when that
            fills up.
        write_through: the engine is to save the pages of a request when it ends.
    """

    def __init__(
        self,
        device: Device,
        cache: KVCache,
        host: HostStore,
        cost: MoveCost,
        disk: DiskStore | None = None,
        *,
        is_tier: bool = False,
        write_at_once: bool = False,
        write_through: bool = False,
    ) -> None:
        self.write_through = write_through
        self._device = device
        self._cache = cache
        self._host = host
        self._cost = cost
        self._disk = disk
        self._disks = [] if disk is None else [disk]  # all that can be read
        self._is_tier = is_tier
        self._saves = is_tier or disk is not None
        self._write_at_once = write_at_once
        self._fetches: dict[Seq, _Fetch] = {}
        self._writes: deque[tuple[HostPage, PageTicket]] = deque()
        self._spent = 0.0  # seconds, on fetches that have not ended
        self._abandoned: list[tuple[HostPage, Ticket]] = []
        self._wanted: deque[PageName] = deque()
        self._ahead: list[tuple[HostPage, PageTicket]] = []
        self._saved = self._fetched = self._missed = self._dropped = 0

    # --- off the device ----------------------------------------------------------------------

    def save(self, pages: Iterable[tuple[PageName, int]]) -> None:
        """Copy pages off the device, those that no store has. They may be reused when it returns.

        Raises:
            DeviceError: a copy failed.
        """
        copies: list[tuple[HostPage, Ticket]] = []
        for name, page in pages if self._saves else ():
            if self._has(name):
                continue
            slot = self._reserve(name, _PATIENCE_S)
            if slot is None and copies:  # all of the host memory may be theirs
                self._finish(copies)
                slot = self._reserve(name, _PATIENCE_S)
            if slot is None:
                self._dropped += 1
                continue
            after = self._device.fence()
            copies.append(
                (slot, self._device.copier.to_host(slot.data, self._cache.page(page), after))
            )
        self._finish(copies)
        self._demote()

    def _finish(self, copies: list[tuple[HostPage, Ticket]]) -> None:
        """Wait for copies to the host, whose pages can be found then."""
        for slot, ticket in copies:
            ticket.wait()
            self._host.commit(slot)
            self._saved += 1
            if self._write_at_once:
                self._write(slot)
        copies.clear()

    def _reserve(self, name: PageName, patience_s: float) -> HostPage | None:
        """A host slot, if need be that of the oldest page, which is written to disk first."""
        while self._host.full:
            oldest = next(self._host.oldest(), None)
            if oldest is not None and (
                self._on_disk(oldest) or (not self._writes and not self._write(oldest))
            ):
                break  # it is on disk, or given up: the disk takes nothing
            if not self._writes or not self._writes[0][1].wait(patience_s):
                return None
            written = self._writes[0][1].ok
            self._reap()
            if not written:
                break
        return self._host.reserve(name)

    def _demote(self) -> None:
        """Write the oldest pages to disk while there is still room beside them."""
        if self._disk is None:
            return
        wanted = max(1, self._host.slots // _CLEAN_SHARE)
        room = self._host.slots - len(self._host) + len(self._writes)
        for page in list(itertools.islice(self._host.oldest(), max(0, wanted - room))):
            if not self._on_disk(page) and not self._write(page):
                return

    def _on_disk(self, page: HostPage) -> bool:
        return self._disk is not None and page.name in self._disk

    def _write(self, page: HostPage) -> bool:
        """Begin to write a page to disk. False: the disk, if there is one, takes nothing now."""
        if self._disk is None:
            return False
        self._host.pin(page)
        ticket = self._disk.store(page.name, page.data)
        if ticket.done() and not ticket.ok:
            self._host.unpin(page)
            return False
        self._writes.append((page, ticket))
        return True

    # --- back to the device ------------------------------------------------------------------

    def available(self, names: Sequence[PageName]) -> int:
        """How many of the first of these pages could be fetched."""
        for count, name in enumerate(names):
            if not self._has(name):
                return count
        return len(names)

    def prefetch(self, names: Iterable[PageName]) -> None:
        """Bring pages from disk to host memory, as a request that waits will need them there."""
        if self._is_tier and self._disks:
            self._wanted.extend(name for name in names if name not in self._host)

    def fetch(self, seq: Seq, names: Sequence[PageName], row: Row) -> None:
        """Begin to bring pages back for a sequence, into the pages of `row`."""
        fetch = self._fetches[seq] = _Fetch(names, row)
        self._begin(fetch)

    def poll(self) -> list[tuple[Seq, int]]:
        """Carry everything on. Returns the sequences whose fetch has ended, and for each how many
        pages hold what they should: those before the first that could not be had.

        Raises:
            DeviceError: a copy failed.
        """
        started = time.perf_counter()
        self._reap()
        ended = []
        for seq, fetch in list(self._fetches.items()):
            for move in list(fetch.moving):
                self._advance(fetch, move)
            self._begin(fetch)
            if fetch.ended:
                del self._fetches[seq]
                self._fetched += fetch.usable
                self._missed += len(fetch.names) - fetch.usable
                ended.append((seq, fetch.usable))
        self._account(started, sum(pages for _, pages in ended))
        self._read_ahead()
        self._demote()
        return ended

    @property
    def busy(self) -> bool:
        """Whether a page moves, so that `poll` has something to do."""
        return self._moves_something() or bool(self._fetches)

    def wait(self) -> None:
        """Wait a moment for something that a fetch needs; there is nothing else to do."""
        tickets = [move.ticket for fetch in self._fetches.values() for move in fetch.moving]
        if tickets:
            started = time.perf_counter()
            tickets[0].wait(0.01)
            self._account(started, 0)

    def _account(self, started: float, pages: int) -> None:
        """The engine spent the time since `started` on fetches, of which so many pages ended."""
        self._spent += time.perf_counter() - started
        if pages:
            self._cost.fetched(pages, self._spent)
        if pages or not self._fetches:
            self._spent = 0.0

    def cancel(self, seq: Seq) -> None:
        """The sequence does not want its pages any more; nothing is written to them after this."""
        fetch = self._fetches.pop(seq, None)
        for move in fetch.moving if fetch is not None else ():
            if move.read is not None:
                self._abandoned.append((move.host, move.ticket))
            else:
                move.ticket.wait()
                self._host.unpin(move.host)

    def _read_ahead(self) -> None:
        for entry in [entry for entry in self._ahead if entry[1].done()]:
            self._ahead.remove(entry)
            if entry[1].ok:
                self._host.commit(entry[0])
            else:
                self._host.unpin(entry[0])
        while self._wanted and len(self._ahead) < _AHEAD:
            name = self._wanted.popleft()
            disk = next((disk for disk in self._disks if name in disk), None)
            host = self._reserve(name, 0.0) if disk is not None else None
            if disk is not None and host is not None:
                self._ahead.append((host, disk.fetch(name, host.data)))

    def _begin(self, fetch: _Fetch) -> None:
        """Start as many pages of a fetch as may move at once."""
        while fetch.lost is None and fetch.next < len(fetch.names) and len(fetch.moving) < _WINDOW:
            name = fetch.names[fetch.next]
            host = self._host.find(name)
            if host is not None:
                self._host.pin(host)
                fetch.moving.append(self._to_device(fetch, fetch.next, host))
            else:
                disk = next((disk for disk in self._disks if name in disk), None)
                host = self._reserve(name, 0.0) if disk is not None else None
                if disk is None or (host is None and not self._moves_something()):
                    fetch.lost = fetch.next
                if disk is None or host is None:
                    return
                read = disk.fetch(name, host.data)
                fetch.moving.append(_Move(fetch.next, host, read, read))
            fetch.next += 1

    def _moves_something(self) -> bool:
        """Whether a host slot will come free."""
        fetches = self._fetches.values()
        waits = self._writes or self._abandoned or self._ahead
        return bool(waits or any(fetch.moving for fetch in fetches))

    def _advance(self, fetch: _Fetch, move: _Move) -> None:
        if not _arrived(move.ticket):
            return
        fetch.moving.remove(move)
        if move.read is None or (fetch.lost is not None and move.index >= fetch.lost):
            self._host.unpin(move.host)
        elif move.read.ok:
            self._host.pin(move.host)
            self._host.commit(move.host)
            fetch.moving.append(self._to_device(fetch, move.index, move.host))
        else:
            self._host.unpin(move.host)
            fetch.lost = move.index

    def _to_device(self, fetch: _Fetch, index: int, host: HostPage) -> _Move:
        target = self._cache.page(fetch.row[index])
        # What ran before may have read what the page held then.
        ticket = self._device.copier.to_device(target, host.data, self._device.fence())
        return _Move(index, host, ticket)

    # --- the stores as a whole ---------------------------------------------------------------

    def read_from(self, disk: DiskStore) -> None:
        """Look for pages there, too. It is closed with the others."""
        self._disks.append(disk)

    def names(self) -> list[PageName]:
        """All pages that are in a store, each once."""
        stores = [self._host.names(), *(disk.names() for disk in self._disks)]
        return list(dict.fromkeys(name for names in stores for name in names))

    def read(self, name: PageName, into: torch.Tensor) -> bool:
        """Copy a page's bytes to host memory, and wait for it. Returns whether it was there."""
        host = self._host.find(name)
        if host is not None:
            into.copy_(host.data)
            return True
        for disk in self._disks:
            if name in disk:
                ticket = disk.fetch(name, into)
                ticket.wait()
                return ticket.ok
        return False

    def remove(self, names: Iterable[PageName]) -> None:
        """Drop pages from all stores; those on their way back do not arrive."""
        gone = set(names)
        for name in gone:
            self._host.remove(name)
            for disk in self._disks:
                disk.remove(name)
        for entry in [entry for entry in self._ahead if entry[0].name in gone]:
            self._ahead.remove(entry)
            self._abandoned.append(entry)
        for fetch in self._fetches.values():
            lost = next((n for n, name in enumerate(fetch.names) if name in gone), None)
            if lost is not None:
                fetch.lost = lost if fetch.lost is None else min(lost, fetch.lost)

    def stats(self) -> OffloadStats:
        return OffloadStats(
            self._saved,
            self._fetched,
            self._missed,
            self._dropped,
            self._host.stats(),
            tuple(disk.stats() for disk in self._disks),
        )

    def close(self) -> None:
        """Wait for what moves, and close the disks.

        Raises:
            DeviceError: a copy failed. The disks are closed all the same.
        """
        try:
            for seq in list(self._fetches):
                self.cancel(seq)
        finally:
            for disk in self._disks:
                disk.close()

    def _has(self, name: PageName) -> bool:
        return name in self._host or any(name in disk for disk in self._disks)

    def _reap(self) -> None:
        """Host slots that are read or written no more are free for others."""
        while self._writes and self._writes[0][1].done():
            self._host.unpin(self._writes.popleft()[0])
        for entry in [entry for entry in self._abandoned if entry[1].done()]:
            self._abandoned.remove(entry)
            self._host.unpin(entry[0])


def _arrived(ticket: Ticket) -> bool:
    """Whether what it promises is done. Raises `DeviceError` if that failed."""
    return ticket.done() and ticket.wait()
