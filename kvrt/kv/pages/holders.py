"""Who holds each page: rows of sequences, the prefix index, or both.

    page     0   1   2   3   4   5     counts: 2 for each row that has the page, 1 for the index
    count    0   4   5   2   1   0
                 |   |   |   |   +---- nobody: free, or retired
                 |   |   |   +-------- the index alone: the page is *cached*, and can be evicted
                 |   |   +------------ one row and nobody else: it may write to the page
                 |   +---------------- two rows and the index
                 +-------------------- two rows

The counts are one array, copied before it is changed and never changed after. It reaches as far as
pages were ever used, and these are packed into the lowest chunks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PageRow = NDArray[np.int32]
"""Pages of a sequence, in order. Never changed once it is made."""

NO_PAGES: PageRow = np.empty(0, np.int32)

_ROW, _INDEX = 2, 1
_SMALLEST = 256


@dataclass(frozen=True, slots=True, eq=False)
class Holders:
    """A value; `evolver` makes the next one.

    Args:
        counts: of each page, int32: no machine has the memory for so many rows that it overflows.
        cached: how many pages the index alone holds.
    """

    counts: NDArray[np.int32]
    cached: int

    @classmethod
    def none(cls) -> "Holders":
        return cls(np.zeros(_SMALLEST, np.int32), 0)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Holders) and np.array_equal(
            np.trim_zeros(self.counts, "b"), np.trim_zeros(other.counts, "b")
        )

    @property
    def named(self) -> list[int]:
        """The pages that the index holds. Looks at all there are."""
        return np.flatnonzero(self.counts & _INDEX).tolist()

    def idle(self, page: int) -> bool:
        """The index alone holds the page."""
        return self.counts.item(page) == _INDEX if page < len(self.counts) else False

    def has_name(self, page: int) -> bool:
        """The index holds the page, maybe beside others."""
        return bool(self.counts.item(page) & _INDEX) if page < len(self.counts) else False

    def writable(self, page: int, left: int = 0) -> bool:
        """A page of rows is held by one of them and nobody else, when `left` of them are gone."""
        return self.counts.item(page) - left * _ROW == _ROW

    def held(self, pages: range) -> list[int]:
        """Those of some pages that somebody holds."""
        return (np.flatnonzero(self.counts[pages.start : pages.stop]) + pages.start).tolist()

    def own(self, row: PageRow) -> NDArray[np.bool_]:
        """Which pages of a sequence's row no other sequence has."""
        return self.counts[row] < 2 * _ROW

    def evolver(self) -> "HoldersEvolver":
        return HoldersEvolver(self)


class HoldersEvolver:
    """Changes holders in place, and gives the result as a new value.

    Args:
        base: stays as it is.
    """

    def __init__(self, base: Holders) -> None:
        self._counts = base.counts.copy()
        self._cached = base.cached

    def persistent(self) -> Holders:
        self._counts.flags.writeable = False
        return Holders(self._counts, self._cached)

    def take(self, pages: Sequence[int]) -> None:
        """Free pages are in one row each now."""
        self._reach(max(pages))
        self._counts[np.asarray(pages)] = _ROW

    def move(self, pages: Sequence[int], to: Sequence[int]) -> None:
        """Whoever holds the first of `pages` holds the first of `to` instead, which was free, and
        so on."""
        self._reach(max(to))
        self._counts[np.asarray(to)] = self._counts[np.asarray(pages)]
        self._counts[np.asarray(pages)] = 0

    def add(self, row: PageRow) -> None:
        """One more row has these pages."""
        before = self._counts[row]
        self._cached -= int(np.count_nonzero(before == _INDEX))
        self._counts[row] = before + _ROW

    def drop(self, row: PageRow) -> tuple[int, ...]:
        """A row has these pages no longer. Returns those that nobody holds now."""
        left = self._counts[row] - _ROW
        self._cached += int(np.count_nonzero(left == _INDEX))
        self._counts[row] = left
        return tuple(row[left == 0].tolist())

    def idle(self, row: PageRow) -> tuple[int, ...]:
        """Those of the pages that the index alone holds."""
        return tuple(row[self._counts[row] == _INDEX].tolist())

    def name(self, pages: Sequence[int]) -> None:
        """The index holds these pages from now on. They are in rows.

        Raises:
            ValueError: one is not, or it holds one already.
        """
        at = np.asarray(pages, np.intp)
        before = self._counts[at]
        if (before < _ROW).any() or (before & _INDEX).any():
            raise ValueError(f"pages {list(pages)} are not all in rows, and none is named yet")
        self._counts[at] = before + _INDEX

    def forget(self, pages: Sequence[int]) -> tuple[int, ...]:
        """The index holds these pages no longer. Returns those that nobody holds now.

        Raises:
            ValueError: it does not hold one of them.
        """
        at = np.asarray(pages, np.intp)
        before = self._counts[at]
        if not (before & _INDEX).all():
            raise ValueError(f"pages {list(pages)} are not all named")
        self._cached -= int(np.count_nonzero(before == _INDEX))
        self._counts[at] = before - _INDEX
        return tuple(at[before == _INDEX].tolist())

    def _reach(self, page: int) -> None:
        """Let there be a count of this page."""
        if page >= len(self._counts):
            counts = np.zeros(1 << page.bit_length(), np.int32)
            counts[: len(self._counts)] = self._counts
            self._counts = counts
