"""A batch's page table as an array, kept from step to step."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kvrt.kv.pages.holders import NO_PAGES, PageRow
from kvrt.kv.pages.lanes import SeqId
from kvrt.kv.pages.table import PageTable

_WIDTH_STEP = 32
"""The array is this many pages wider at a time, so that it is not made anew at every page."""


class PageRows:
    """Rows of page numbers of one group, one for each sequence of a batch, in its order.

    From one decode step to the next, few sequences get a page: only those entries are written.
    When the batch's sequences change, rows that stay are moved as a whole.
    """

    def __init__(self, group: int = 0) -> None:
        self._group = group
        self._seqs: list[SeqId] = []
        self._rows: list[PageRow] = []
        self._array: NDArray[np.int32] = np.empty((0, 0), np.int32)

    def select(self, table: PageTable, seqs: Sequence[SeqId]) -> NDArray[np.int32]:
        """int32 [sequences, at least the most pages], contiguous; the rest of a row is anything.

        The array is this object's own: the next call may change it.
        """
        rows = [table.row(seq, self._group) for seq in seqs]
        self._arrange(list(seqs), max(map(len, rows), default=0))
        for i, (row, written) in enumerate(zip(rows, self._rows, strict=True)):
            if row is not written:
                same = len(written) if np.array_equal(row[: len(written)], written) else 0
                self._array[i, same : len(row)] = row[same:]
                self._rows[i] = row
        return self._array

    def _arrange(self, seqs: list[SeqId], pages: int) -> None:
        """Move what was written to where it belongs, in an array that is wide enough."""
        width = self._array.shape[1]
        wider = -(-pages // _WIDTH_STEP) * _WIDTH_STEP
        if seqs == self._seqs and wider <= width:
            return
        where = {seq: i for i, seq in enumerate(self._seqs)}
        kept = [(i, where[seq]) for i, seq in enumerate(seqs) if seq in where]
        array = np.zeros((len(seqs), wider), np.int32)
        rows = [NO_PAGES] * len(seqs)
        if kept:
            to, source = (list(side) for side in zip(*kept, strict=True))
            both = min(width, wider)
            array[to, :both] = self._array[source, :both]
            for i, j in kept:
                written = self._rows[j]
                rows[i] = written if len(written) <= both else written[:both]
        self._seqs, self._rows, self._array = seqs, rows, array
