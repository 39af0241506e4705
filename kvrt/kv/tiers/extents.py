"""Which blocks of a file are free."""

from bisect import bisect_left

from kvrt.errors import IntegrityError


class Extents:
    """Free runs of blocks, taken first fit; neighbours join when they are given back.

    |####|      |########|  |##|              add(4, 6) would make one run of 4..16
    0    4     10       18 20  22
    """

    def __init__(self) -> None:
        self._starts: list[int] = []  # of free runs, ascending
        self._counts: list[int] = []
        self.free = 0
        """Blocks in all free runs."""

    def runs(self) -> list[tuple[int, int]]:
        """First block and count of each free run, in order."""
        return list(zip(self._starts, self._counts, strict=True))

    def take(self, count: int) -> int | None:
        """The first of `count` blocks in a row, which are free no more; None if there are none."""
        for n, have in enumerate(self._counts):
            if have >= count:
                start = self._starts[n]
                if have == count:
                    del self._starts[n], self._counts[n]
                else:
                    self._starts[n] += count
                    self._counts[n] -= count
                self.free -= count
                return start
        return None

    def add(self, start: int, count: int) -> None:
        """Make blocks free: new ones, or those taken before.

        Raises:
            IntegrityError: one of them is free already.
        """
        if count <= 0:
            return
        n = bisect_left(self._starts, start)
        end = start + count
        before = n > 0 and self._starts[n - 1] + self._counts[n - 1]
        if (n > 0 and before > start) or (n < len(self._starts) and self._starts[n] < end):
            raise IntegrityError(f"blocks {start} to {end - 1} of the page file are free already")
        self.free += count
        if n < len(self._starts) and self._starts[n] == end:
            count += self._counts[n]
            del self._starts[n], self._counts[n]
        if n > 0 and before == start:
            self._counts[n - 1] += count
        else:
            self._starts.insert(n, start)
            self._counts.insert(n, count)
