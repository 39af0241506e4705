"""What a prefix index can give up, that of least worth first.

A page is of no use without those before it that its layers see. Where they see everything, what is
given up is always an *end*, after which none comes, and all groups give it up; then the page before
it is an end, and competes with the others. Layers with a window give up any page that no sequence
holds.
"""

import bisect
import heapq
import itertools
from collections.abc import Iterable

from kvrt.kv.index.eviction import CachedPage, Worth
from kvrt.kv.pages.lanes import Pages
from kvrt.kv.pages.table import PageTable

CHOICE = 8
_SHARE = 4
_LEAST_HEAP = 64

_Item = tuple[Worth, bool, int, int, CachedPage, int]
"""Something to give up: what it was worth when a sequence last held it; whether it is an end, which
goes after pages of windows that are worth as much; its page in its group, or for a page of a window
how many come before it; a number that no other item has; the entry; the group."""


class Ends:
    """A heap that is kept up to date. Items that have become wrong stay in it until it is half
    wrong: so a change costs the logarithm of its size.

    Args:
        full: one of the groups whose layers see everything; None: all have a window, so that there
            are no ends.
    """

    def __init__(self, full: int | None = None) -> None:
        self._full = full
        self._heap: list[_Item] = []
        self._right: dict[tuple[CachedPage, int], int] = {}
        self._numbers = itertools.count()

    def add(self, entry: CachedPage, group: int | None = None) -> None:
        """It is an end, or has an idle page in a `group` with a window; or is worth another
        amount."""
        if (place := self._full if group is None else group) is None:
            return
        is_end = group is None
        number = self._right[entry, place] = next(self._numbers)
        order = entry.pages[place] if is_end else entry.depth
        heapq.heappush(self._heap, (entry.worth, is_end, order, number, entry, place))
        if len(self._heap) > 2 * len(self._right) + _LEAST_HEAP:
            self._heap = [item for item in self._heap if self._is_right(item)]
            heapq.heapify(self._heap)

    def discard(self, entry: CachedPage, group: int | None = None) -> None:
        """It is no end, or has no idle page in a `group`."""
        place = self._full if group is None else group
        if place is not None:
            self._right.pop((entry, place), None)

    def in_order(self) -> "InOrder":
        """To take from, by worth, as long as the index stays as it is. Changes nothing here."""
        return InOrder(self._heap, self._right, self._full)

    def _is_right(self, item: _Item) -> bool:
        return self._right.get(item[4:]) == item[3]


class InOrder:
    """What a plan gives up of an index, one thing after the other. The index stays as it is.

    The heap's smallest items are found without taking them out: what comes after item i are items
    2i + 1 and 2i + 2. The first few that are idle wait in `_window`, sorted.

    Args:
        heap: of items.
        right: the numbers of those that are not wrong.
        full: as in `Ends`.
    """

    def __init__(
        self, heap: list[_Item], right: dict[tuple[CachedPage, int], int], full: int | None
    ) -> None:
        self._heap = heap
        self._right = right
        self._full = full
        self._next: list[tuple[_Item, int | None]] = []  # with its place in the heap, if any
        self._window: list[_Item] = []
        self._in_use: list[_Item] = []
        self._after: dict[CachedPage, int] = {}  # how many of those that come after each went
        self._gone: set[tuple[CachedPage, int]] = set()
        self._numbers = itertools.count(-1, -1)
        self._push(0)

    def take(self, table: PageTable, nbytes: int, choice: int = CHOICE) -> Pages:
        """Pages of each group that are idle in `table`, of `nbytes` together if there are so many,
        to be given up.

        Args:
            choice: among the quarter of the items that are worth least, so many at most, the one in
                the emptiest chunk goes, so that chunks become empty and can be given back.
        """

        def beside(item: _Item) -> int:
            lane, page = table.lanes[item[5]], item[4].pages[item[5]]
            return lane.placement.users_beside(page) * lane.geometry.page_bytes

        window = self._window
        taken: list[list[int]] = [[] for _ in table.lanes]
        found = 0
        while found < nbytes:
            self._fill(table)
            if not window:
                break
            item = min(window[: min(-(-len(window) // _SHARE), choice)], key=beside)
            window.remove(item)
            if item[4:] in self._gone:
                continue
            if not _idle(table, item):  # the plan has begun a sequence with it
                self._in_use.append(item)
                continue
            for group, page in self._give_up(item):
                lane = table.lanes[group]
                if not lane.holders.has_name(page):
                    continue  # the plan has given it up before it looked anew
                taken[group].append(page)
                found += lane.holders.idle(page) * lane.geometry.page_bytes
        return tuple(map(tuple, taken))

    def look_again(self, idled: Iterable[tuple[CachedPage, int]]) -> None:
        """Sequences of the plan have left pages: what was in use may be idle now.

        Args:
            idled: entries, and groups with a window of which a page is idle now.
        """
        for item in self._in_use:
            heapq.heappush(self._next, (item, None))
        self._in_use.clear()
        for entry, group in idled:
            item = (entry.worth, False, entry.depth, next(self._numbers), entry, group)
            heapq.heappush(self._next, (item, None))

    def _give_up(self, item: _Item) -> list[tuple[int, int]]:
        """The pages that go with it, each with its group."""
        entry, group = item[4:]
        if group != self._full:
            self._gone.add((entry, group))
            return [(group, entry.pages[group])]
        pages = []
        for each, page in enumerate(entry.pages):
            if page and (entry, each) not in self._gone:
                self._gone.add((entry, each))
                pages.append((each, page))
        if len(entry.pages) > 1:
            self._window[:] = [other for other in self._window if other[4] is not entry]
        before = entry.before
        if before is not None:  # perhaps it is an end now
            went = self._after[before] = self._after.get(before, 0) + 1
            if went == before.after:
                number = next(self._numbers)
                end = (before.worth, True, before.pages[group], number, before, group)
                heapq.heappush(self._next, (end, None))
        return pages

    def _fill(self, table: PageTable) -> None:
        """Let the window hold all that may be among the least."""
        window, ahead = self._window, self._next
        while ahead and (len(window) < CHOICE * _SHARE or ahead[0][0] < window[-1]):
            item, at = heapq.heappop(ahead)
            if at is not None:
                self._push(2 * at + 1)
                self._push(2 * at + 2)
                if self._right.get(item[4:]) != item[3]:
                    continue
            if item[4:] in self._gone:
                continue
            if _idle(table, item):
                bisect.insort(window, item)
            else:
                self._in_use.append(item)

    def _push(self, at: int) -> None:
        if at < len(self._heap):
            heapq.heappush(self._next, (self._heap[at], at))


def _idle(table: PageTable, item: _Item) -> bool:
    return table.lanes[item[5]].holders.idle(item[4].pages[item[5]])
