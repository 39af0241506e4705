"""So many lines are asked at once, and every owner gets as many places as any other."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable

MOST_BYTES = 64 << 20
"""Of lines that are asked at once, unless one alone has more."""


class Places:
    """See the module. Belongs to the event loop.

    Args:
        room: how many there are, now; a line is always let in where none is.
    """

    def __init__(self, room: Callable[[], int]) -> None:
        self._room = room
        self._waiting: OrderedDict[str, deque[tuple[int, asyncio.Future[None]]]] = OrderedDict()
        self._inside: Counter[str] = Counter()
        self._bytes = 0

    @property
    def inside(self) -> int:
        return self._inside.total()

    async def enter(self, owner: str, nbytes: int) -> None:
        """Wait for a place; `leave` gives it back."""
        future = asyncio.get_running_loop().create_future()
        line = self._waiting.setdefault(owner, deque())
        line.append((nbytes, future))
        self.look()
        try:
            await future
        except asyncio.CancelledError:
            if future.cancelled():
                self._forget(owner, nbytes, future)
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
        """Let in who can come in: of those who wait, the owner with the fewest places; owners who
        have the same take turns."""
        while self._waiting:
            owner = min(self._waiting, key=self._inside.__getitem__)
            nbytes, future = self._waiting[owner][0]
            full = self.inside >= self._room() or self._bytes + nbytes > MOST_BYTES
            if full and self.inside:
                return
            self._forget(owner, nbytes, future)
            if owner in self._waiting:
                self._waiting.move_to_end(owner)
            if not future.done():
                self._inside[owner] += 1
                self._bytes += nbytes
                future.set_result(None)

    def _forget(self, owner: str, nbytes: int, future: "asyncio.Future[None]") -> None:
        """It waits no longer, if it has."""
        line = self._waiting.get(owner)
        if line is not None and (nbytes, future) in line:
            line.remove((nbytes, future))
            if not line:
                del self._waiting[owner]
