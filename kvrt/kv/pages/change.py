"""What an operation of the page table gives: a change to carry out, or a shortage of pages."""

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvrt.kv.pages.ops import Op

if TYPE_CHECKING:
    from kvrt.kv.pages.table import PageTable

Pages = tuple[tuple[int, ...], ...]
"""Of each group, some of its pages."""


@dataclass(frozen=True, slots=True)
class Change:
    """The table after an operation, and what has to be done on the device, in order.

    Args:
        table: after it.
        ops: for the device.
        dropped: of each group, pages that the prefix index held and holds no longer.
    """

    table: "PageTable"
    ops: tuple[Op, ...] = ()
    dropped: Pages = ()

    def then(self, change: "Change") -> "Change":
        """This change and then another, which was planned on this one's table."""
        both = itertools.zip_longest(self.dropped, change.dropped, fillvalue=())
        return Change(change.table, self.ops + change.ops, tuple(a + b for a, b in both))

    def lost(self, group: int = 0) -> tuple[int, ...]:
        """Of one group, the pages that were dropped."""
        return self.dropped[group] if self.dropped else ()


@dataclass(frozen=True, slots=True)
class Shortage:
    """There are not enough pages; nothing was changed.

    Args:
        needed: pages that were asked for, of a group that has not so many.
        free: pages of it that there were.
    """

    needed: int
    free: int


@dataclass(frozen=True, slots=True)
class Retired:
    """Pages that nobody holds any more, but that step number `step` may still read."""

    step: int
    pages: Pages
