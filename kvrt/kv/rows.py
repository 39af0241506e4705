"""A batch of sequences in pages: rows that grow together, fork and end."""

from collections.abc import Sequence
from itertools import count

from kvrt.errors import CapacityError
from kvrt.executor.local import LocalPages
from kvrt.kv.cache import KVCache
from kvrt.kv.pages.lanes import Shortage
from kvrt.kv.pages.table import Change
from kvrt.kv.stats import CacheStats
from kvrt.spi import StepBatch
from kvrt.units import format_bytes


class Rows:
    """The rows of one batch, each a sequence of pages.

    Args:
        pages: of a device; closed with this.
        windows: of each group of layers, how many positions they see; 0: all.
        limit_bytes: of physical memory.

    Raises:
        CapacityError: the limit has no room for a single page.
    """

    def __init__(self, pages: LocalPages, windows: Sequence[int], limit_bytes: int) -> None:
        self._executor = pages
        self._cache = KVCache(
            pages, limit_bytes=limit_bytes, windows=[(window, 0) for window in windows]
        )
        self._ids = count()
        self._rows: list[int] = []
        self._step = 0

    @property
    def lengths(self) -> list[int]:
        """Of each row, the tokens it has."""
        return [self._cache.table.length(seq) for seq in self._rows]

    def begin(self, tokens: Sequence[int]) -> list[StepBatch]:
        """Make room for so many more tokens of each row; the first call says how many rows.

        Returns:
            Of each group, where the rows' pages are.

        Raises:
            CapacityError: the limit, or the device, has no room for them.
        """
        self._executor.finish()  # so that what the last step read may be unmapped
        self._cache.end_step(self._step)
        self._step += 1
        rows = self._rows or [next(self._ids) for _ in tokens]
        change = self._cache.table.grow(dict(zip(rows, tokens, strict=True)))
        if isinstance(change, Shortage):
            limit = self._cache.stats().limit_bytes
            raise CapacityError(
                f"a memory limit of {format_bytes(limit)} has {change.free} pages for this step,"
                f" which needs {change.needed}",
                free=limit,
                fix="raise memory_limit, or generate for fewer or shorter sequences at once",
            )
        self._commit(change)
        self._rows = rows
        return list(self._executor.batches(self._cache.step(rows, tokens)))

    def select(self, parents: Sequence[int]) -> None:
        """The rows are from now on those of `parents`, by their numbers before: some may go, and
        others go on in several rows, which share pages until they are written to."""
        table, rows = self._cache.table, [self._rows[parent] for parent in parents]
        change, taken = Change(table), set[int]()
        for at, seq in enumerate(rows):
            if seq in taken:
                rows[at] = next(self._ids)
                change = change.then(change.table.fork(seq, rows[at]))
            taken.add(seq)
        for seq in sorted({*self._rows} - taken):
            change = change.then(change.table.free(seq))
        self._commit(change)
        self._rows = rows

    def cut(self, tokens: int) -> None:
        """Forget the last so many tokens of each row."""
        change = Change(self._cache.table)
        for seq, length in zip(self._rows, self.lengths, strict=True):
            change = change.then(change.table.truncate(seq, length - tokens))
        self._commit(change)

    def clear(self) -> None:
        """Forget all rows, and give their memory back."""
        self.select([])
        self._cache.idle()

    def stats(self) -> CacheStats:
        return self._cache.stats()

    def close(self) -> None:
        """Give all memory and addresses back. Safe to call twice."""
        self._cache.close()

    def _commit(self, change: Change) -> None:
        failed = self._cache.commit(change)
        if failed is not None:
            raise failed.error
