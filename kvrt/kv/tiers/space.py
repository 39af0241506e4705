"""The room in a page file's two files: rows for records, blocks for bodies, and their growth."""

import errno
import os
import threading
import time
from collections.abc import Collection

from kvrt.errors import ConfigError, IntegrityError
from kvrt.kv.tiers.blockfile import BLOCK, BlockFile
from kvrt.kv.tiers.extents import Extents
from kvrt.kv.tiers.format import PageFormat, Record
from kvrt.units import MIB, format_bytes

MOST_ROWS = 2
"""Per page's worth of blocks, where bodies are compressed: to half, that is. Of those that are
smaller yet, not all find a row, and the oldest make room."""

STEP = 64 * MIB
"""By so much the data file grows: few, large allocations keep it in one piece."""

FULL_FOR = 30.0
"""Seconds until a full disk is asked for more space again."""

SLACK = 64 * BLOCK
"""An index may be longer by so much than its data needs, as the data may have been cut."""

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_LIMIT = 1 << 62


class Space:
    """Takes and gives back rows and blocks; makes the files longer within a budget.

    Both are allocated before they are used, so that a full disk is met here, where it means that
    older pages must make room, and not in the middle of a write.

    Args:
        form: of the pages.
        index: the file of records.
        data: the file of bodies.
        budget: bytes that both may take; None: no limit.
        rows_for_page: rows per worth of blocks of the smallest page: more than one, if bodies are
            compressed; at most `MOST_ROWS`.

    Raises:
        ConfigError: the budget is less than one page needs.
    """

    def __init__(
        self,
        form: PageFormat,
        index: BlockFile,
        data: BlockFile,
        budget: int | None,
        rows_for_page: int,
    ) -> None:
        self._form = form
        self._index = index
        self._data = data
        self._rows_for_page = rows_for_page
        self._data_limit = _NO_LIMIT
        self._mutex = threading.Lock()
        self._growing = threading.Lock()
        self._rows: list[int] = []
        self._blocks = Extents()
        self._full_until = 0.0
        if budget is not None:
            # 2 blocks: the superblock, and the rounding of the index.
            rows = -(-form.page_stride // form.least_stride) * rows_for_page
            pages = (budget - 2 * BLOCK) // (form.page_stride + rows * form.record_bytes)
            if pages < 1:
                raise ConfigError(
                    f"{format_bytes(budget)} on disk are less than one page of"
                    f" {format_bytes(max(form.sizes))} needs",
                    fix="give more",
                )
            self._data_limit = pages * form.page_stride
        self.data_bytes = data.size // BLOCK * BLOCK
        longest = self._index_for(self.data_bytes, MOST_ROWS) + SLACK
        self.index_bytes = min(index.size, longest)
        self.overlong = index.size > longest
        """The index is longer than any that belongs to such data; `shrink` cuts the rest off."""

    @property
    def free_bytes(self) -> int:
        """Of bodies that could be written without growing."""
        return self._blocks.free * BLOCK

    @property
    def full(self) -> bool:
        """Whether the disk lately had no space."""
        return time.monotonic() < self._full_until

    def shrink(self) -> None:
        """Cut off what an older, larger budget has left beyond this one, and what is overlong."""
        if self.data_bytes > self._data_limit:
            self._data.truncate(self._data_limit)
            self.data_bytes = self._data_limit
        self.index_bytes = min(self.index_bytes, self._index_for(self._data_limit))
        if self._index.size > self.index_bytes:
            self._index.truncate(self.index_bytes)
            self.overlong = False

    def beyond(self, record: Record) -> bool:
        """Whether the record or its body is not within the budget."""
        end = record.offset + record.blocks * BLOCK
        return end > self._data_limit or record.row >= self._rows_in(
            self._index_for(self._data_limit)
        )

    def occupy(self, records: Collection[Record]) -> None:
        """Begin: these records have their places, and all else is free."""
        taken = {record.row for record in records}
        self._rows = [
            row for row in reversed(range(self._rows_in(self.index_bytes))) if row not in taken
        ]
        at = 0
        for record in sorted(records, key=lambda record: record.offset):
            self._blocks.add(at, record.offset // BLOCK - at)
            at = record.offset // BLOCK + record.blocks
        self._blocks.add(at, self.data_bytes // BLOCK - at)

    def take(self, blocks: int) -> tuple[int, int] | None:
        """A row, and the first of so many blocks in a row; None if either is lacking."""
        with self._mutex:
            if not self._rows or (first := self._blocks.take(blocks)) is None:
                return None
            return self._rows.pop(), first

    def give(self, record: Record) -> None:
        """The record's row and blocks are free."""
        with self._mutex:
            self._rows.append(record.row)
            self._blocks.add(record.offset // BLOCK, record.blocks)

    def grow(self) -> bool:
        """Make both files longer; false if the budget or the disk has no room for a page more.

        Raises:
            OSError: the disk failed in another way.
        """
        before = self.data_bytes
        with self._growing:
            if self.data_bytes > before:  # another thread was faster
                return True
            if self.full:
                return False
            for step in (STEP, self._form.page_stride):
                end = min(self.data_bytes + step, self._data_limit)
                end = max(self.data_bytes, end - end % self._form.page_stride)
                index_end = max(self.index_bytes, self._index_for(end))
                if (index_end, end) == (self.index_bytes, self.data_bytes):
                    continue
                try:
                    self._grow_to(index_end, end)
                    return True
                except OSError as error:
                    if error.errno not in _NO_SPACE:
                        raise
                    if step == self._form.page_stride:
                        self._full_until = time.monotonic() + FULL_FOR
            return False

    def check_integrity(self, records: Collection[Record]) -> None:
        """Raises `IntegrityError` unless each row and block is free or has one of the records.

        To be called while nothing is written.
        """
        rows = sorted(self._rows + [record.row for record in records])
        if rows != list(range(self._rows_in(self.index_bytes))):
            raise IntegrityError("page file: a row of the index is lost, or used twice")
        blocks = Extents()
        for start, count in self._blocks.runs():
            blocks.add(start, count)
        for record in records:
            blocks.add(record.offset // BLOCK, record.blocks)
        if blocks.runs() not in ([], [(0, self.data_bytes // BLOCK)]):
            raise IntegrityError("page file: a block is lost")

    def _index_for(self, data_bytes: int, rows_for_page: int | None = None) -> int:
        """Bytes of an index for so much data."""
        rows = data_bytes // self._form.least_stride * (rows_for_page or self._rows_for_page)
        return BLOCK + -(-rows * self._form.record_bytes // BLOCK) * BLOCK

    def _rows_in(self, index_bytes: int) -> int:
        return (index_bytes - BLOCK) // self._form.record_bytes

    def _grow_to(self, index_bytes: int, data_bytes: int) -> None:
        if index_bytes > self.index_bytes:
            self._index.allocate(self.index_bytes, index_bytes)
            old, new = self._rows_in(self.index_bytes), self._rows_in(index_bytes)
            self.index_bytes = index_bytes
            with self._mutex:
                self._rows[:0] = reversed(range(old, new))
        if data_bytes > self.data_bytes:
            self._data.allocate(self.data_bytes, data_bytes)
            with self._mutex:
                self._blocks.add(self.data_bytes // BLOCK, (data_bytes - self.data_bytes) // BLOCK)
                self.data_bytes = data_bytes


def no_space() -> OSError:
    """What is raised where nothing can make room on a full disk."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
