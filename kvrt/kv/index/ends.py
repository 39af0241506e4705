"""The pages of a prefix index after which none comes, those of least worth first.

A page is of no use without those before it. So what is given up is always an end; then the page
before it is one, and competes with the others.
"""

import bisect
import heapq
import itertools

from kvrt.kv.index.eviction import CachedPage, Worth
from kvrt.kv.pages.table import PageTable

_CHOICE = 8
_SHARE = 4
_LEAST_HEAP = 64

_Item = tuple[Worth, int, int, CachedPage]
"""An end: what it is worth, its page, and a number that no other item has."""


class Ends:
    """A heap that is kept up to date. Items that have become wrong stay in it until it is half
    wrong: so a change costs the logarithm of its size."""

    def __init__(self) -> None:
        self._heap: list[_Item] = []
        self._right: dict[CachedPage, int] = {}
        self._numbers = itertools.count()

    def add(self, entry: CachedPage) -> None:
        """It is an end, or one that is worth something else now."""
        number = self._right[entry] = next(self._numbers)
        heapq.heappush(self._heap, (entry.worth, entry.page, number, entry))
        if len(self._heap) > 2 * len(self._right) + _LEAST_HEAP:
            self._heap = [item for item in self._heap if self._is_right(item)]
            heapq.heapify(self._heap)

    def discard(self, entry: CachedPage) -> None:
        """It is none, or is gone."""
        self._right.pop(entry, None)

    def __contains__(self, entry: CachedPage) -> bool:
        return entry in self._right

    def in_order(self) -> "InOrder":
        """To take from, by worth, as long as the index stays as it is. Changes nothing here."""
        return InOrder(self._heap, self._right)

    def _is_right(self, item: _Item) -> bool:
        return self._right.get(item[3]) == item[2]


class InOrder:
    """What a plan gives up of an index, one page after the other. The index stays as it is.

    The heap's smallest items are found without taking them out: what comes after item i are items
    2i + 1 and 2i + 2. The first few that are idle wait in `_window`, sorted.

    Args:
        heap: of items.
        right: the numbers of those that are not wrong.
    """

    def __init__(self, heap: list[_Item], right: dict[CachedPage, int]) -> None:
        self._heap = heap
        self._right = right
        self._next: list[tuple[_Item, int | None]] = []  # with its place in the heap, if any
        self._window: list[_Item] = []
        self._in_use: list[_Item] = []
        self._gone: dict[CachedPage, int] = {}  # of those that come after each: how many went
        self._push(0)

    def take(self, table: PageTable, count: int, choice: int = _CHOICE) -> list[int]:
        """Up to `count` pages that are idle in `table`, to be given up in this order.

        Args:
            choice: among the quarter of the ends that are worth least, so many at most, the one in
                the emptiest chunk goes, so that chunks become empty and can be given back.
        """
        placement, window = table.lanes[0].placement, self._window
        taken: list[int] = []
        while len(taken) < count:
            self._fill(table)
            if not window:
                break
            least = window[: min(-(-len(window) // _SHARE), choice)]
            item = min(least, key=lambda item: placement.users_beside(item[1]))
            window.remove(item)
            if not table.lanes[0].holders.idle(item[1]):  # the plan has begun a sequence with it
                self._in_use.append(item)
                continue
            taken.append(item[1])
            self._expose(item[3].before)
        return taken

    def look_again(self) -> None:
        """Sequences of the plan have lost their pages: what was in use may be idle now."""
        for item in self._in_use:
            heapq.heappush(self._next, (item, None))
        self._in_use.clear()

    def _fill(self, table: PageTable) -> None:
        """Let the window hold all ends that may be among the least."""
        holders, window, ahead = table.lanes[0].holders, self._window, self._next
        while ahead and (len(window) < _CHOICE * _SHARE or ahead[0][0] < window[-1]):
            item, at = heapq.heappop(ahead)
            if at is not None:
                self._push(2 * at + 1)
                self._push(2 * at + 2)
                if self._right.get(item[3]) != item[2]:
                    continue
            if holders.idle(item[1]):
                bisect.insort(window, item)
            else:
                self._in_use.append(item)

    def _push(self, at: int) -> None:
        if at < len(self._heap):
            heapq.heappush(self._next, (self._heap[at], at))

    def _expose(self, entry: CachedPage | None) -> None:
        """One of the pages after it went: perhaps it is an end now."""
        if entry is None:
            return
        gone = self._gone[entry] = self._gone.get(entry, 0) + 1
        if gone == entry.after:
            heapq.heappush(self._next, ((entry.worth, entry.page, -1, entry), None))
