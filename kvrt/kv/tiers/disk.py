"""KV pages on disk, without waiting for it."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvrt.kv.tiers.blockfile import Bytes
from kvrt.kv.tiers.buffers import bytes_of
from kvrt.kv.tiers.names import StoredName
from kvrt.kv.tiers.pagefile import PageFile
from kvrt.kv.tiers.workers import Job, Workers

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

THREADS = 8
"""``docs/design/tiers.md`` has the measurement."""

PATIENCE_S = 5.0
"""A read or write that has run for longer hangs in the system: nobody waits for it any more. A page
takes milliseconds."""

FAILURES = 3
"""So many writes must fail one after the other for the store to pause."""


@dataclass(frozen=True, slots=True)
class DiskStats:
    """What a `DiskStore` holds and did.

    Args:
        pages: pages that can be found.
        used_bytes: on disk, of pages' bodies.
        held_bytes: on disk, used or not.
        queued: stores and fetches that have not begun.
        stored: pages written.
        found: fetches that brought the page.
        missed: fetches that did not, whatever the reason.
        dropped: pages that were to be stored and were not.
        evicted: pages that made room for others.
        damaged: records and pages found that were not what was written.
        read_errors: reads that the system failed.
        write_errors: writes that the system failed.
        hung: reads and writes that did not return, and were given up; while there are any, nothing
            is read or written.
        paused: nothing is written for a while, because writes kept failing.
        direct: the page cache is bypassed; false where the file system cannot.
    """

    pages: int
    used_bytes: int
    held_bytes: int
    queued: int
    stored: int
    found: int
    missed: int
    dropped: int
    evicted: int
    damaged: int
    read_errors: int
    write_errors: int
    hung: int
    paused: bool
    direct: bool


class PageTicket(Job):
    """The store or fetch of a page.

    Args:
        name: of the page.
        store: the disk that does it.
    """

    def __init__(self, name: StoredName, store: "DiskStore", work: Callable[[Job], bool]) -> None:
        super().__init__(work)
        self.name = name
        self.store = store

    def overdue(self) -> bool:
        """Whether nobody should wait for it any more. Its page's memory is in use until it is
        done all the same."""
        return self.runs_longer_than(PATIENCE_S) and self.store.hangs()


class DiskStore:
    """A `PageFile` behind a few threads: every method returns at once, but `close`.

        store   --> queue --> written, then found              later
        fetch   --> queue --> read and verified, or missed     first, as somebody waits for it
        remove  --> not found any more; its record is erased later

    A disk that fails costs pages and no more: a page that cannot be written is dropped, one that
    cannot be read is a miss and removed. There is one warning an interval; `stats` counts. After
    `FAILURES` failed writes in a row, nothing is written for `retry_after` seconds. A disk that
    does not return from a call is as if it held nothing, and takes nothing, until it does.

    A ticket is one as in `kvrt.spi`; its `wait` never raises. Its `ok` says, once it is done,
    whether the page was stored or found.

    Args:
        file: opened for writing; the store closes it. If it is read-only, every page is dropped.
        threads: how many reads and writes run at once.
        retry_after: seconds.
        warn_every: seconds between two warnings.
    """

    def __init__(
        self,
        file: PageFile,
        *,
        threads: int = THREADS,
        retry_after: float = 30.0,
        warn_every: float = 60.0,
    ) -> None:
        self._file = file
        self._retry_after = retry_after
        self._warn_every = warn_every
        self._mutex = threading.Lock()
        self._pending: dict[StoredName, PageTicket] = {}  # being stored
        self._paused_until = self._next_warning = 0.0
        self._failures = 0  # of writes, in a row
        self._stored = self._found = self._missed = self._dropped = 0
        self._read_errors = self._write_errors = 0
        self._workers = Workers(threads, "kvrt-disk")

    def __contains__(self, name: StoredName) -> bool:
        """Whether a fetch of the page would look for it; one that is being stored is not there."""
        return name in self._file and not self.hangs()

    def __len__(self) -> int:
        return len(self._file)

    def names(self) -> list[StoredName]:
        """All pages, the least recently used first."""
        return self._file.names()

    def is_at(self, folder: Path) -> bool:
        """Whether the files in that folder are those that are open here."""
        return self._file.is_at(folder)

    def refresh(self) -> None:
        """Find what another process has written since; see `PageFile.refresh`."""
        self._file.refresh()

    def store(self, name: StoredName, data: "Tensor | Bytes") -> PageTicket:
        """Write a page, unless it is there.

        Args:
            name: of the page.
            data: the bytes of a page of its group, contiguous and in host memory; must not change
                until the ticket is done. If the address is a multiple of 4096, the disk reads it
                without a copy.

        Returns:
            A ticket. Its `ok`: the page is there.
        """
        body = bytes_of(data, self._file.form.sizes[name.group])
        hangs = self.hangs()
        with self._mutex:
            pending = self._pending.get(name)
            if pending is not None:
                return pending
            ticket = PageTicket(name, self, lambda job: self._write(job, name, body))
            paused = time.monotonic() < self._paused_until or hangs
            if paused:
                self._dropped += 1
            else:
                self._pending[name] = ticket
        if paused:
            ticket.drop()
        elif not self._workers.submit(ticket, urgent=False):
            self._withdrawn(ticket)
        return ticket

    def fetch(self, name: StoredName, into: "Tensor | Bytes") -> PageTicket:
        """Read a page.

        Args:
            name: of the page.
            into: as many bytes in host memory, contiguous; nobody may use them until the ticket
                is done. Aligned as in `store`, it is written without a copy.

        Returns:
            A ticket. Its `ok`: the page is in `into`; else `into` may hold anything.
        """
        body = bytes_of(into, self._file.form.sizes[name.group])
        ticket = PageTicket(name, self, lambda job: self._read(name, body))
        if name not in self or not self._workers.submit(ticket, urgent=True):
            with self._mutex:
                self._missed += 1
            if not ticket.done():
                ticket.drop()
        return ticket

    def _withdrawn(self, ticket: PageTicket) -> None:
        with self._mutex:
            if self._pending.get(ticket.name) is ticket:
                del self._pending[ticket.name]
                self._dropped += 1

    def hangs(self) -> bool:
        """Whether a read or write does not return. Then those that wait behind it are dropped."""
        if not self._workers.stuck(PATIENCE_S):
            return False
        for job in self._workers.drop_all():
            if isinstance(job, PageTicket):
                self._withdrawn(job)
        self._warn("use", f"it has not answered for {PATIENCE_S:g} s")
        return True

    def remove(self, name: StoredName) -> bool:
        """Drop a page, and let none that is being stored now come after this.

        Returns whether it was there.
        """
        with self._mutex:
            pending = self._pending.pop(name, None)
            there = self._file.forget(name)
        if pending is not None:
            self._workers.withdraw(pending)
        if there:
            self._workers.submit(Job(lambda job: self._sweep()), urgent=False)
        return there

    def stats(self) -> DiskStats:
        with self._mutex:
            return DiskStats(
                pages=len(self._file),
                used_bytes=self._file.used_bytes,
                held_bytes=self._file.held_bytes,
                queued=len(self._workers),
                stored=self._stored,
                found=self._found,
                missed=self._missed,
                dropped=self._dropped,
                evicted=self._file.evicted,
                damaged=self._file.damaged,
                read_errors=self._read_errors,
                write_errors=self._write_errors,
                hung=self._workers.stuck(PATIENCE_S),
                paused=time.monotonic() < self._paused_until,
                direct=self._file.direct,
            )

    def close(self, timeout: float = 10.0) -> bool:
        """Finish what is queued, for `timeout` seconds at most, and drop the rest.

        Returns:
            Whether nothing runs any more. If not, a thread hangs in the system, with its ticket
            not done; then the folder stays locked until the process ends. What is known to hang is
            not waited for.
        """
        if not self._workers.close(0.0 if self.hangs() else timeout):
            return False
        try:
            self._file.close()
        except OSError as error:
            self._warn("erase", error)
        return True

    # --- in the threads ---------------------------------------------------------------------

    def _write(self, job: Job, name: StoredName, body: Bytes) -> bool:
        failure: OSError | None = None
        there = False
        try:
            there = self._file.write(name, body)
        except OSError as error:
            failure = error
        with self._mutex:
            if self._pending.get(name) is job:
                del self._pending[name]
            elif name not in self._pending:  # removed meanwhile
                self._file.forget(name)
                there = False
            self._stored += there
            self._dropped += not there
            self._failures = self._failures + 1 if failure else 0
            if failure:
                self._write_errors += 1
            if self._failures >= FAILURES:
                self._paused_until = time.monotonic() + self._retry_after
        if failure:
            self._warn("write", failure)
        return there

    def _read(self, name: StoredName, body: Bytes) -> bool:
        failure: OSError | None = None
        found = False
        damaged = self._file.damaged
        try:
            found = self._file.read(name, body)
        except OSError as error:
            failure = error
        with self._mutex:
            self._found += found
            self._missed += not found
            self._read_errors += failure is not None
        if failure:
            self._warn("read", failure)
        elif self._file.damaged > damaged:
            self._warn("use", "it is damaged")
        if not found:
            self._sweep()
        return found

    def _sweep(self) -> bool:
        try:
            self._file.sweep()
        except OSError as error:
            with self._mutex:
                self._write_errors += 1
            self._warn("erase", error)
            return False
        return True

    def _warn(self, verb: str, why: object) -> None:
        now = time.monotonic()
        with self._mutex:
            if now < self._next_warning:
                return
            self._next_warning = now + self._warn_every
        log.warning(
            "cannot %s a KV page in %s: %s. Such pages are computed again; no answer changes."
            " There may be more of it: this is said once in %g s.",
            verb,
            self._file.folder,
            why,
            self._warn_every,
        )
