"""So many lines are asked at once, and every owner gets as many places as any other, for its share.

Of an owner's lines, those of a higher priority come in first, then those of what is to be over
first.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable
from itertools import count
from math import inf

from kvrt.batches.words import Rank

MOST_BYTES = 64 << 20
"""Of lines that are asked at once, unless one alone has more."""

ANY: Rank = (0, inf)

Waiting = tuple[Rank, int, int, "asyncio.Future[None]"]
"""A line: its rank, its number in the order of arrival, its bytes, and what it waits for."""


def _even(owner: str) -> int:
    return 1


class Places:
    """See the module. Belongs to the event loop.

    Args:
        room: how many there are, now; a line is always let in where none is.
        share: of an owner, now: who has 3 gets three times as many as who has 1.
    """

    def __init__(self, room: Callable[[], int], share: Callable[[str], int] = _even) -> None:
        self._room = room
        self._share = share
        self._waiting: OrderedDict[str, list[Waiting]] = OrderedDict()
        self._numbers = count()
        self._inside: Counter[str] = Counter()
        self._bytes = 0

    @property
    def inside(self) -> int:
        return self._inside.total()

    async def enter(self, owner: str, nbytes: int, rank: Rank = ANY) -> None:
        """Wait for a place; `leave` gives it back.

        Args:
            rank: of an owner's, the least comes in first.
        """
        future = asyncio.get_running_loop().create_future()
        line: Waiting = (rank, next(self._numbers), nbytes, future)
        self._waiting.setdefault(owner, []).append(line)
        self.look()
        try:
            await future
        except asyncio.CancelledError:
            if future.cancelled():
                self._forget(owner, line)
                self.look()
            else:
                self.leave(owner, nbytes)
            raise

    def leave(self, owner: str, nbytes: int) -> None:
        self._inside[owner] -= 1
        if not self._inside[owner]:
            del self._inside[owner]
        self._bytes -= nbytes
        self.look()

    def look(self) -> None:
        """Let in who can come in: of those who wait, the owner with the fewest places for its
        share; owners who have the same take turns."""
        while self._waiting:
            owner = min(self._waiting, key=lambda one: self._inside[one] / self._share(one))
            line = min(self._waiting[owner])  # numbers differ: futures are never compared
            _, _, nbytes, future = line
            full = self.inside >= self._room() or self._bytes + nbytes > MOST_BYTES
            if full and self.inside:
                return
            self._forget(owner, line)
            if owner in self._waiting:
                self._waiting.move_to_end(owner)
            if not future.done():
                self._inside[owner] += 1
                self._bytes += nbytes
                future.set_result(None)

    def _forget(self, owner: str, line: Waiting) -> None:
        """It waits no longer, if it has."""
        waiting = self._waiting.get(owner)
        if waiting is not None and line in waiting:
            waiting.remove(line)
            if not waiting:
                del self._waiting[owner]
