"""What an operation of the page table gives: a change to carry out, or a shortage of pages."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvrt.kv.pages.ops import Op

if TYPE_CHECKING:
    from kvrt.kv.pages.table import PageTable


@dataclass(frozen=True, slots=True)
class Change:
    """The table after an operation, and what has to be done on the device, in order.

    Args:
        table: after it.
        ops: for the device.
        dropped: pages that the prefix index held and holds no longer.
    """

    table: "PageTable"
    ops: tuple[Op, ...] = ()
    dropped: tuple[int, ...] = ()

    def then(self, change: "Change") -> "Change":
        """This change and then another, which was planned on this one's table."""
        return Change(change.table, self.ops + change.ops, self.dropped + change.dropped)


@dataclass(frozen=True, slots=True)
class Shortage:
    """There are not enough pages; nothing was changed.

    Args:
        needed: pages that were asked for.
        free: pages there were.
    """

    needed: int
    free: int


@dataclass(frozen=True, slots=True)
class Retired:
    """Pages that nobody holds any more, but that step number `step` may still read."""

    step: int
    pages: tuple[int, ...]
