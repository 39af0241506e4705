"""Everywhere that KV pages are outside a device, as one: host memory, and what is behind it."""

import itertools
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from kvrt.kv.tiers.disk import DiskStats, DiskStore, PageTicket
from kvrt.kv.tiers.host import HostPage, HostStats, HostStore
from kvrt.kv.tiers.names import PageName, StoredName
from kvrt.kv.tiers.remote.client import RemoteStore
from kvrt.kv.tiers.remote.desk import RemoteStats
from kvrt.kv.tiers.remote.owed import RemoteTicket

if TYPE_CHECKING:
    from torch import Tensor

_CLEAN_SHARE = 8
"""One in so many bytes of host memory is kept ready for others: what is there is on disk, too."""


_SENDING_SHARE = 4
"""One in so many bytes of host memory may hold pages that are being sent to a store elsewhere: a
slow one must not take what pages on their way to and from the device go through."""

_CLOSE_S = 6.0
"""What is queued for disks has so long at the end, for all of them together."""

_GLANCE_S = 0.1
"""Between two looks at whether a disk hangs."""


Read = PageTicket | RemoteTicket
"""A page that is being read, by a disk or from elsewhere."""


class Stores:
    """Pages go to the disk from host memory, and come from there to host memory; likewise to and
    from a store elsewhere.

        reserve --> [ a copy writes the slot ] --> commit --> write --> disk
                                    find --> [ a copy reads it ]  `--> send --> elsewhere

    Nothing waits for a disk but `reserve`, while host memory is full of pages still to be written.
    Not thread-safe: it belongs to the engine's thread, which calls `reap` between steps.

    Args:
        host: slots that pages go through, and a tier if it is large.
        disk: where pages go that host memory has no room for; None: nowhere.
        remote: where pages go that others may want, and theirs come from; None: nowhere.
        write_at_once: pages go on to disk as soon as they are in host memory, not only when that
            fills up.
    """

    def __init__(
        self,
        host: HostStore,
        disk: DiskStore | None,
        remote: RemoteStore | None = None,
        *,
        write_at_once: bool,
    ) -> None:
        self.host = host
        self.remote = remote
        self._disks = [] if disk is None else [disk]  # all that can be read
        self._disk = disk
        self._write_at_once = write_at_once
        self._writes: deque[tuple[HostPage, PageTicket]] = deque()
        self._sends: list[tuple[HostPage, RemoteTicket]] = []
        self._abandoned: list[tuple[HostPage, Read]] = []

    def __contains__(self, name: StoredName) -> bool:
        return name in self.host or self.behind(name) is not None

    def behind(self, name: StoredName) -> DiskStore | RemoteStore | None:
        """What has the page behind host memory: a disk, or else the store elsewhere."""
        if (disk := self.on_disk(name)) is not None:
            return disk
        return self.remote if self.remote is not None and name in self.remote else None

    def on_disk(self, name: StoredName) -> DiskStore | None:
        """A disk that has the page."""
        return next((disk for disk in self._disks if name in disk), None)

    @property
    def busy(self) -> bool:
        """Whether a slot will come free by itself."""
        moving: list[tuple[HostPage, Read]] = [*self._writes, *self._sends, *self._abandoned]
        return any(not ticket.overdue() for _, ticket in moving)

    @property
    def sending(self) -> int:
        """Pages on their way elsewhere."""
        return sum(not ticket.done() for _, ticket in [*self._sends])

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
        if self.host.find(page.name) is not page:
            return  # another copy was faster
        if self._write_at_once:
            self._write(page)
        self._send(page)

    def abandon(self, page: HostPage, read: Read) -> None:
        """Nobody wants what is being read into this slot any more."""
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
        for send in [send for send in self._sends if send[1].done()]:
            self._sends.remove(send)
            self.host.unpin(send[0])
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

    def _send(self, page: HostPage) -> None:
        """Others may want the page. One that cannot be sent now is not: they compute it."""
        if self.remote is None or page.name in self.remote:
            return
        sending = sum(self.host.share(sent.name.group) for sent, _ in self._sends)
        if _SENDING_SHARE * (sending + self.host.share(page.name.group)) > self.host.capacity:
            return
        self.host.pin(page)
        ticket = self.remote.store(page.name, page.data)
        if ticket.done():
            self.host.unpin(page)
        else:
            self._sends.append((page, ticket))

    # --- as a whole --------------------------------------------------------------------------

    def opened(self, folder: Path) -> DiskStore | None:
        """The disk that has the files in that folder open already."""
        return next((disk for disk in self._disks if disk.is_at(folder)), None)

    def read_from(self, disk: DiskStore) -> None:
        """Look for pages there, too. It is closed with the others."""
        self._disks.append(disk)

    def names(self) -> list[StoredName]:
        """All pages in host memory and on disks, each once."""
        stores = [self.host.names(), *(disk.names() for disk in self._disks)]
        return list(dict.fromkeys(name for names in stores for name in names))

    def read(self, name: StoredName, into: "Tensor") -> bool:
        """Copy a page's bytes to host memory, and wait for it, if it is there already or on a disk.
        Returns whether it was; if not, `into` may yet be written to, and is of no more use."""
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
            if self.remote is not None:
                self.remote.remove(StoredName(*name))

    def stats(self) -> tuple[HostStats, tuple[DiskStats, ...], RemoteStats | None]:
        """Of host memory, of each disk, and of the store elsewhere."""
        remote = None if self.remote is None else self.remote.stats()
        return self.host.stats(), tuple(disk.stats() for disk in self._disks), remote

    def close(self) -> None:
        """Close the disks, and the way elsewhere."""
        deadline = time.monotonic() + _CLOSE_S
        if self.remote is not None:
            self.remote.close(_CLOSE_S / 2)
            self.reap()
        for disk in self._disks:
            disk.close(max(0.0, deadline - time.monotonic()))
