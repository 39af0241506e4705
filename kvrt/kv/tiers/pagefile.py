"""KV pages in a folder: a disk tier, and a snapshot that survives restarts; the same files."""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np

from kvrt.kv.tiers.blockfile import BLOCK, BlockFile, Bytes
from kvrt.kv.tiers.codec import Codec
from kvrt.kv.tiers.files import INDEX, PageFiles, as_store_errors
from kvrt.kv.tiers.folder import prepare
from kvrt.kv.tiers.format import (
    RAW,
    PageFormat,
    Record,
    Scan,
    blocks_for,
    check_superblock,
    checksum,
    pack,
    scan,
    superblock,
)
from kvrt.kv.tiers.names import StoredName
from kvrt.kv.tiers.space import MOST_ROWS, Space, no_space


class PageFile:
    """Pages by name, in an index of fixed records and a file of bodies (`format`).

        write   body, then record            so a process that dies leaves whole pages or none
        remove  record, then its blocks      are free for another body

    Nothing is flushed but by `sync`: after a loss of power, a record may be there without its
    body. Checksums tell, and such a page counts as missing, like one that is damaged in any other
    way. A page that is there is never written again.

    When the budget is used up, or the disk is full, the least recently used pages make room. Over
    a restart, the order is that of writing.

    Reads and writes of several threads run side by side; `forget`, ``in``, `names` and `__len__`
    never wait for the disk.

    Args:
        form: what all its pages have in common.
        files: open; they are its own from then on.
        budget: bytes that both files may take together; None: as many as there are.
        codec: how new bodies are written, and written ones read.
    """

    def __init__(
        self,
        form: PageFormat,
        files: PageFiles,
        budget: int | None,
        codec: Codec,
    ) -> None:
        self.folder = files.folder
        self.form = form
        self.damaged = 0
        """Records and bodies found that were not what was written."""
        self.evicted = 0
        """Pages that made room for others."""
        self._files = files
        self._codec = codec
        self._mutex = threading.Lock()  # never held over a call to the system
        self._records: OrderedDict[StoredName, Record] = OrderedDict()  # least recently used first
        self._dead: deque[Record] = deque()  # to be erased from the index
        self._turn = 0
        self._closed = False
        self._load(budget)

    @classmethod
    def open(
        cls,
        folder: Path,
        form: PageFormat,
        *,
        budget: int | None = None,
        writable: bool = True,
        compress: int | None = None,
        open_file: Callable[..., BlockFile] = BlockFile,
    ) -> Self:
        """Open the page file in `folder`; if it is to be written and not there, make it.

        A file that is not what is asked for is never changed: it is an error that says what it is.

        Args:
            folder: made if need be, for its owner alone.
            form: what its pages must have in common.
            budget: bytes on disk; what an older file has beyond it is dropped. None: no limit.
            writable: it may be changed, and nobody else may. Else it is only read, whoever
                writes to it meanwhile.
            compress: zstd's level for new pages; None: as they are.
            open_file: opens a file, as `BlockFile` does.

        Raises:
            StoreError: the folder or the file cannot be used; `StoreError.reason` says why.
            ConfigError: `compress` is given and zstandard is not installed.
        """
        codec = Codec(compress)
        head = superblock(form)
        files = PageFiles.open(folder, head, writable=writable, open_file=open_file)
        try:
            with as_store_errors(folder):
                return cls(form, files, budget, codec)
        except BaseException:
            files.close()
            raise

    def is_at(self, folder: Path) -> bool:
        """Whether the files in that folder are those that are open here."""
        return self._files.are_at(folder)

    def refresh(self) -> None:
        """Find what another process has written since. One that is written to here knows already.

        Raises:
            StoreError: the files cannot be used any more; what was found before still is.
        """
        if self._files.lock is not None:
            return
        prepare(self.folder, create=False)
        with as_store_errors(self.folder):
            self._load(None)

    def _load(self, budget: int | None) -> None:
        head = np.empty(min(BLOCK, self._files.index.size), np.uint8)
        self._files.index.read(head, 0)
        check_superblock(head.tobytes(), self.form, self.folder / INDEX)
        rows = MOST_ROWS if self._codec.compresses else 1
        self._space = Space(
            self.form, self._files.index, self._files.data, budget, rows_for_page=rows
        )
        raw = np.empty(self._space.index_bytes - BLOCK, np.uint8)
        self._files.index.read(raw, BLOCK)
        found = scan(raw.data, self.form, self._space.data_bytes)
        self.damaged = len(found.damaged) + self._space.overlong
        for codec in {record.codec for record in found.records}:
            self._codec.check(codec, self.folder)
        with self._mutex:
            for record in self._records.values():
                record.gone = True
            # Of a page written twice, which only damage can bring about, the newer one counts.
            self._records = OrderedDict((record.name, record) for record in found.records)
        if found.records:
            self._turn = found.records[-1].turn
        if self._files.lock is not None:
            self._clean(found)
        self._space.occupy(self._records.values())

    def _clean(self, found: Scan) -> None:
        """Erase what is damaged, or beyond the budget, before its place is used again."""
        for name in [name for name, r in self._records.items() if self._space.beyond(r)]:
            del self._records[name]
        rows = {record.row for record in self._records.values()}
        for row in found.damaged + [r.row for r in found.records if r.row not in rows]:
            self._write_row(row, bytes(self.form.record_bytes))
        self._space.shrink()

    # --- what is there ----------------------------------------------------------------------

    @property
    def direct(self) -> bool:
        """Whether bodies bypass the page cache."""
        return self._files.data.direct

    @property
    def held_bytes(self) -> int:
        """Bytes on disk, used or not."""
        return self._space.index_bytes + self._space.data_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes on disk of pages' bodies."""
        return self._space.data_bytes - self._space.free_bytes

    def __contains__(self, name: StoredName) -> bool:
        return name in self._records

    def __len__(self) -> int:
        return len(self._records)

    def names(self) -> list[StoredName]:
        """All pages, the least recently used first."""
        with self._mutex:
            return list(self._records)

    # --- pages ------------------------------------------------------------------------------

    def read(self, name: StoredName, into: Bytes) -> bool:
        """Read a page, which counts as used now.

        Args:
            name: of the page.
            into: uint8, of the size of its group's pages; if the result is false it may hold
                anything.

        Returns:
            Whether the page is in `into`. One that is damaged is not, and it is removed.

        Raises:
            OSError: the disk could not read it; it is removed.
        """
        with self._mutex:
            record = self._records.get(name)
            if record is None:
                return False
            self._records.move_to_end(name)
            record.readers += 1
        whole = False
        try:
            whole = self._read_body(record, into)
            if not whole:
                self.damaged += 1
        finally:
            with self._mutex:
                record.readers -= 1
                if not whole and not record.gone:
                    self._forget(record)
                elif record.gone and not record.readers:
                    self._dead.append(record)
        return whole

    def _read_body(self, record: Record, into: Bytes) -> bool:
        if record.codec == RAW:
            self._files.data.read(into, record.offset)
            return checksum(into.data) == record.body
        body = np.empty(record.length, np.uint8)
        self._files.data.read(body, record.offset)
        return checksum(body.data) == record.body and self._codec.decompress(body, into)

    def write(self, name: StoredName, data: Bytes) -> bool:
        """Write a page, unless it is there already.

        Args:
            name: of the page.
            data: uint8, of the size of its group's pages.

        Returns:
            Whether it is there now. It is not if the budget has no room that could be made, or
            the file is only read.

        Raises:
            OSError: the disk could not write it; it is not there.
        """
        if self._files.lock is None:
            return False
        with self._mutex:
            if name in self._records:
                self._records.move_to_end(name)
                return True
        codec, body = self._codec.compress(data)
        blocks = blocks_for(len(body), codec, self.form, name.group)
        place = self._place(blocks)
        if place is None:
            return False
        row, first = place
        with self._mutex:
            self._turn += 1
            turn = self._turn
        record = Record(
            name, row, turn, first * BLOCK, len(body), checksum(body.data), codec, blocks
        )
        try:
            self._files.data.write(body, record.offset)
            self._write_row(row, pack(record, self.form))
        except BaseException:
            self._dead.append(record)
            raise
        with self._mutex:
            if name in self._records:  # another thread was faster
                self._dead.append(record)
            else:
                self._records[name] = record
        return True

    def forget(self, name: StoredName) -> bool:
        """Remove a page from memory only; `sweep` removes it from the disk.

        Returns whether it was there. A thread that reads it meanwhile still gets the page.
        """
        with self._mutex:
            record = self._records.get(name)
            if record is None:
                return False
            self._forget(record)
            return True

    def remove(self, name: StoredName) -> bool:
        """Remove a page. Returns whether it was there. Its bytes stay until they are written over.

        Raises:
            OSError: the disk could not do it; the page may be there again after a restart.
        """
        there = self.forget(name)
        self.sweep()
        return there

    def sweep(self) -> None:
        """Erase what was forgotten, and use its place again.

        Raises:
            OSError: the disk could not erase a record. Its place is used again nevertheless:
                the record then tells of another body's blocks, and is not believed.
        """
        while self._dead and self._files.lock is not None:
            try:
                record = self._dead.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                self._write_row(record.row, bytes(self.form.record_bytes))
            finally:
                self._space.give(record)

    def sync(self) -> None:
        """Return when all pages would survive a loss of power.

        Raises:
            OSError: the disk could not do it.
        """
        self._files.sync()

    def close(self) -> None:
        """Let others have the folder. Safe to call twice; nothing else may be called after it."""
        try:
            if not self._closed:
                self._closed = True
                self.sweep()
        finally:
            self._files.close()

    def check_integrity(self) -> None:
        """Raises `IntegrityError` if the records and their places disagree; for idle times."""
        with self._mutex:
            self._space.check_integrity([*self._records.values(), *self._dead])

    # --- records ----------------------------------------------------------------------------

    def _forget(self, record: Record) -> None:
        """With the mutex held."""
        del self._records[record.name]
        record.gone = True
        if not record.readers:
            self._dead.append(record)

    def _write_row(self, row: int, raw: bytes) -> None:
        self._files.index.write(np.frombuffer(raw, np.uint8), BLOCK + row * self.form.record_bytes)

    def _place(self, blocks: int) -> tuple[int, int] | None:
        """A free row and so many free blocks; None if everything is being read.

        Raises:
            OSError: the disk is full and there is no page that could make room.
        """
        while True:
            self.sweep()
            place = self._space.take(blocks)
            if place is not None:
                return place
            if self._space.grow():
                continue
            with self._mutex:
                victim = next((r for r in self._records.values() if not r.readers), None)
                if victim is None:
                    break
                self._forget(victim)
                self.evicted += 1
        if not self._records and self._space.full:
            raise no_space()
        return None
