"""Who holds each page: live sequences, cached rows, or both.

                   +-- 9 -- 2 -- a          a is a live sequence, c a cached row
              4 ---+
                   +-- 7 -- c

A page's *direct* referrers are the pages that follow it and the rows that end in it. A cached row's
end is a cached referrer. A page whose referrers are all cached is *idle*, and is a cached referrer
of the page before it: here 7 is idle; 4 is not, and has one cached referrer.

So that these facts stay true, a row that ends or begins looks at its own pages from the last one
on, as far as something changes: at the first page that somebody else keeps alive it stops.
"""

from dataclasses import dataclass

Row = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Referrers:
    """A value; `evolver` makes the next one.

    Args:
        counts: direct referrers of each page that has more than one.
        idle: the set of idle pages, bit p for page p.
        cached: how many cached referrers each page has that has some and is not idle.
    """

    counts: dict[int, int]
    idle: int
    cached: dict[int, int]

    @classmethod
    def none(cls) -> "Referrers":
        return cls({}, 0, {})

    def evolver(self) -> "ReferrersEvolver":
        return ReferrersEvolver(self)


class ReferrersEvolver:
    """Changes referrers in place, and gives the result as a new value.

    Args:
        base: stays as it is.
    """

    def __init__(self, base: Referrers) -> None:
        self.counts = base.counts.copy()
        self.idle = base.idle
        self.cached = base.cached.copy()

    def persistent(self) -> Referrers:
        return Referrers(self.counts, self.idle, self.cached)

    def add_live(self, row: Row) -> None:
        """One more live referrer of the row's last page; all of its pages are alive then."""
        self._count(row[-1:], 1)
        for i in range(len(row) - 1, -1, -1):
            page = row[i]
            if not self.idle >> page & 1:
                if i < len(row) - 1:  # the page after it was a cached referrer
                    self._count_cached(page, -1)
                return
            self.idle ^= 1 << page
            self._count_cached(page, self.counts.get(page, 1) - 1)

    def drop_live(self, row: Row, keep: int) -> Row:
        """A live row is cut down to its first `keep` pages; returns the pages nobody holds now."""
        last = len(row)
        while last > keep and row[last - 1] not in self.counts:
            last -= 1
        if last > keep:  # somebody else holds this page, and with it all before it
            self._count(row[:keep][-1:], 1)
            self._count(row[last - 1 : last], -1)
            self._rest(row[:last])
        return row[last:]

    def replace_last(self, row: Row) -> None:
        """A live row goes on in a copy of its last page, which somebody else holds, too."""
        self._count(row[-2:-1], 1)
        self._count(row[-1:], -1)
        self._rest(row)

    def cache_live(self, row: Row) -> bool:
        """A live row becomes a cached one. False: others keep all of it cached, it is just gone."""
        end = row[-1]
        redundant = self.cached.get(end, 0) > 0
        if redundant:
            self._count((end,), -1)
        else:
            self._count_cached(end, 1)
        self._rest(row)
        return not redundant

    def drop_cached(self, row: Row) -> bool:
        """A cached row's end is gone. True: its last page is held by nobody now."""
        end = row[-1]
        if not self.idle >> end & 1:
            self._count((end,), -1)
            self._count_cached(end, -1)
            return False
        if end in self.counts:
            self._count((end,), -1)
            return False
        self.idle ^= 1 << end
        return True

    def drop_cached_page(self, page: int) -> bool:
        """The idle page after `page` is gone. True: it was the only one."""
        if page not in self.counts:
            return True
        self._count((page,), -1)
        if not self.idle >> page & 1:
            self._count_cached(page, -1)
        return False

    def _rest(self, row: Row) -> None:
        """The last page lost its last live referrer, perhaps: let what is idle now be so."""
        for i in range(len(row) - 1, -1, -1):
            page = row[i]
            if self.cached.get(page, 0) != self.counts.get(page, 1):
                return
            del self.cached[page]
            self.idle |= 1 << page
            if i:
                self._count_cached(row[i - 1], 1)

    def _count(self, pages: Row, more: int) -> None:
        for page in pages:
            count = self.counts.pop(page, 1) + more
            if count > 1:
                self.counts[page] = count

    def _count_cached(self, page: int, more: int) -> None:
        count = self.cached.pop(page, 0) + more
        if count:
            self.cached[page] = count
