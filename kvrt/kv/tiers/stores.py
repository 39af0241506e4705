"""Everywhere that KV pages are outside a device, as one: host memory, and disks behind it."""

import itertools
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from kvrt.kv.tiers.disk import DiskStats, DiskStore, PageTicket
from kvrt.kv.tiers.host import HostPage, HostStats, HostStore
from kvrt.kv.tiers.names import PageName, StoredName

if TYPE_CHECKING:
    from torch import Tensor

_CLEAN_SHARE = 8
"""One in so many bytes of host memory is kept ready for others: what is there is on disk, too."""


_CLOSE_S = 6.0
"""What is queued for disks has so long at the end, for all of them together."""

_GLANCE_S = 0.1
"""Between two looks at whether a disk hangs."""


class Stores:
    """Pages go to the disk from host memory, and come from there to host memory.

        reserve --> [ a copy writes the slot ] --> commit --> write --> disk
                                    find --> [ a copy reads it ]

    Nothing waits for a disk but `reserve`, while host memory is full of pages still to be written.
    Not thread-safe: it belongs to the engine's thread, which calls `reap` between steps.

    Args:
        host: slots that pages go through, and a tier if it is large.
        disk: where pages go that host memory has no room for; None: nowhere.
        write_at_once: pages go on to disk as soon as they are in host memory, not only when that
            fills up.
    """

    def __init__(self, host: HostStore, disk: DiskStore | None, *, write_at_once: bool) -> None:
        self.host = host
        self._disks = [] if disk is None else [disk]  # all that can be read
        self._disk = disk
        self._write_at_once = write_at_once
        self._writes: deque[tuple[HostPage, PageTicket]] = deque()
        self._abandoned: list[tuple[HostPage, PageTicket]] = []

    def __contains__(self, name: StoredName) -> bool:
        return name in self.host or self.on_disk(name) is not None

    def on_disk(self, name: StoredName) -> DiskStore | None:
        """A disk that has the page."""
        return next((disk for disk in self._disks if name in disk), None)

    @property
    def busy(self) -> bool:
        """Whether a slot will come free by itself."""
        return any(not ticket.overdue() for _, ticket in (*self._writes, *self._abandoned))

    # --- host slots --------------------------------------------------------------------------

    def reserve(self, name: StoredName, patience_s: float) -> HostPage | None:
        """A host slot, if need be in place of the oldest pages, which are written to disk first.

        Args:
            name: of the page that is to be copied there; then `commit` it, or unpin it.
            patience_s: seconds that the disk has for one page.
        """
        while (going := self.host.in_the_way(name.group)) != []:
            unwritten = [page for page in going or () if not self._written(page)]
            if going and (
                not unwritten or (not self._writes and not all(map(self._write, unwritten)))
            ):
                break  # they are on disk, or given up: the disk takes nothing
            if not self._writes:
                return None
            first = self._writes[0][1]
            if not first.store.hangs() and not first.wait(patience_s):
                return None
            written = first.ok
            self.reap()
            if not written:
                break
        return self.host.reserve(name)

    def commit(self, page: HostPage) -> None:
        """A page was copied off the device into its slot: it can be found."""
        self.host.commit(page)
        if self._write_at_once:
            self._write(page)

    def abandon(self, page: HostPage, read: PageTicket) -> None:
        """Nobody wants what a disk is reading into this slot any more."""
        self._abandoned.append((page, read))

    def demote(self) -> None:
        """Write the oldest pages to disk while there is still room beside them."""
        if self._disk is None:
            return
        host = self.host
        frames = host.capacity // host.frame_bytes
        wanted = max(1, frames // _CLEAN_SHARE) * host.frame_bytes
        room = host.capacity - host.used_bytes
        room += sum(host.share(page.name.group) for page, _ in self._writes)
        for page in host.oldest():
            if room >= wanted or (not self._written(page) and not self._write(page)):
                return
            room += host.share(page.name.group)

    def reap(self) -> None:
        """Host slots that are read or written no more are free for others."""
        while self._writes and (self._writes[0][1].done() or self._writes[0][1].overdue()):
            self._abandoned.append(self._writes.popleft())
        for entry in [entry for entry in self._abandoned if entry[1].done()]:
            self._abandoned.remove(entry)
            self.host.unpin(entry[0])

    def _written(self, page: HostPage) -> bool:
        return self._disk is not None and page.name in self._disk

    def _write(self, page: HostPage) -> bool:
        """Begin to write a page to disk. False: the disk, if there is one, takes nothing now."""
        if self._disk is None:
            return False
        self.host.pin(page)
        ticket = self._disk.store(page.name, page.data)
        if ticket.done() and not ticket.ok:
            self.host.unpin(page)
            return False
        self._writes.append((page, ticket))
        return True

    # --- as a whole --------------------------------------------------------------------------

    def opened(self, folder: Path) -> DiskStore | None:
        """The disk that has the files in that folder open already."""
        return next((disk for disk in self._disks if disk.is_at(folder)), None)

    def read_from(self, disk: DiskStore) -> None:
        """Look for pages there, too. It is closed with the others."""
        self._disks.append(disk)

    def names(self) -> list[StoredName]:
        """All pages that are in a store, each once."""
        stores = [self.host.names(), *(disk.names() for disk in self._disks)]
        return list(dict.fromkeys(name for names in stores for name in names))

    def read(self, name: StoredName, into: "Tensor") -> bool:
        """Copy a page's bytes to host memory, and wait for it. Returns whether it was there; if
        not, `into` may yet be written to, and is of no more use."""
        host = self.host.find(name)
        if host is not None:
            into.copy_(host.data)
            return True
        disk = self.on_disk(name)
        if disk is None:
            return False
        ticket = disk.fetch(name, into)
        while not ticket.wait(_GLANCE_S) and not disk.hangs():
            pass
        return ticket.ok

    def remove(self, pages: Iterable[PageName]) -> None:
        """Drop the pages of all groups from all stores."""
        for name in itertools.product(pages, range(len(self.host.sizes))):
            self.host.remove(StoredName(*name))
            for disk in self._disks:
                disk.remove(StoredName(*name))

    def stats(self) -> tuple[HostStats, tuple[DiskStats, ...]]:
        """Of host memory, and of each disk."""
        return self.host.stats(), tuple(disk.stats() for disk in self._disks)

    def close(self) -> None:
        """Close the disks."""
        deadline = time.monotonic() + _CLOSE_S
        for disk in self._disks:
            disk.close(max(0.0, deadline - time.monotonic()))
