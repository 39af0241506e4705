"""A batch of sequences in pages, as `generate` has them: rows that grow together, fork and end."""

from collections.abc import Sequence
from itertools import count
from typing import cast

from torch import Tensor

from kvrt.errors import CapacityError
from kvrt.executor.local import LocalPages
from kvrt.kv.cache import KVCache
from kvrt.kv.pages.lanes import Shortage
from kvrt.kv.pages.table import Change
from kvrt.kv.stats import CacheStats
from kvrt.spi import AttentionBatch, AttentionParams, Device, KVLayout
from kvrt.units import format_bytes

MOST_PAGES = 2**31 - 1
"""That a group may ask addresses for: it gets as many as the device could ever hold."""


class BatchPages:
    """The rows of one batch, each a sequence of pages.

    Args:
        device: its owner closes it after this.
        layouts: of each group of layers that see as far back.
        windows: of each group, how many positions its layers see; 0: all.
        limit_bytes: of physical memory.

    Raises:
        CapacityError: the limit has no room for a single page.
        ConfigError: the device does not keep keys and values in that format.
    """

    def __init__(
        self,
        device: Device,
        layouts: Sequence[KVLayout],
        windows: Sequence[int],
        limit_bytes: int,
    ) -> None:
        self._attention = device.attention
        self._executor = LocalPages(device, layouts, MOST_PAGES)
        self._cache = KVCache(
            self._executor, limit_bytes=limit_bytes, windows=[(window, 0) for window in windows]
        )
        self._ids = count()
        self._rows: list[int] = []
        self._plans: list[object] = []
        self._step = 0

    @property
    def lengths(self) -> list[int]:
        """Of each row, the tokens it has."""
        return [self._cache.table.length(seq) for seq in self._rows]

    def begin(self, tokens: Sequence[int]) -> None:
        """Make room for so many more tokens of each row; the first call says how many rows.

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
        batches = self._executor.batches(self._cache.step(rows, tokens))
        self._plans = [self._attention.plan(cast(AttentionBatch, batch)) for batch in batches]

    def append(self, group: int, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store the keys and values of this step's tokens, row after row: [tokens, heads, dim].

        Args:
            group: of the layer.
            layer: its place in the group.
        """
        self._attention.append(self._plans[group], layer, keys, values)

    def attend(
        self, group: int, layer: int, queries: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        """What this step's tokens, [tokens, heads, dim], see in a layer."""
        self._attention.run(self._plans[group], layer, queries, out, params)

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
