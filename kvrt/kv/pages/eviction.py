"""Which cached pages are given up when others need the memory."""

import heapq
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kvrt.kv.pages.change import Change
from kvrt.kv.pages.table import PageTable

_CHOICE = 8
_SHARE = 4


def evict(
    table: PageTable, count: int, worth: Callable[[int], Any], choice: int = _CHOICE
) -> Change:
    """Give up to `count` idle pages up.

    Only the end of a cached row can go, since what follows a page is of no use without it; then
    the page before it is the end.

    Args:
        worth: of a page; it is compared with that of others. Among the quarter of the ends that
            are worth least, `choice` at most, the one in the emptiest chunk goes, so that chunks
            become empty and can be given back.
    """
    referrers, cached = table.referrers.evolver(), table.cached.copy()
    ends = [(worth(page), page) for page in cached if referrers.idle >> page & 1]
    heapq.heapify(ends)
    given: list[int] = []
    while ends and len(given) < count:
        page = _choose(ends, table, choice)
        row = cached.pop(page)
        if not referrers.drop_cached(row):
            continue  # a longer cached row goes on from here
        given.append(page)
        if len(row) > 1 and referrers.drop_cached_page(before := row[-2]):
            cached[before] = row[:-1]
            heapq.heappush(ends, (worth(before), before))
    if not given:
        return Change(table)
    freed = replace(table, cached=cached, referrers=referrers.persistent()).give(given)
    return replace(freed, dropped=tuple(given))


def _choose(ends: list[tuple[Any, int]], table: PageTable, choice: int) -> int:
    """Take a page out of the heap."""
    least = [heapq.heappop(ends) for _ in range(min(-(-len(ends) // _SHARE), choice))]
    best = min(least, key=lambda end: table.placement.users_beside(end[1]))
    for end in least:
        if end is not best:
            heapq.heappush(ends, end)
    return best[1]
