"""What a machine's memory leaves a KV cache, as others take of it and give it back.

    free   |---- none ----|-- low --|----- enough -----|------------------->
           <- reserve ->  |  less   |  stays           |  more again

The reserve is the backend's (`MemoryInfo.free` leaves it out): once that is used up, the system
ends a process, most likely the one that holds most. So pages go before. Between low and enough
nothing changes, so that pages do not go to and fro.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from kvrt.spi import MemoryInfo
from kvrt.units import format_bytes

log = logging.getLogger(__name__)

ENOUGH_BYTES = 64 << 20
"""Half of it is low. Of a small machine, a sixteenth of its memory is enough."""

LOOK_S = 0.1
"""How often it is looked: what is low and the reserve last longer, at a gigabyte a second."""

_WARN_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Left:
    """While memory runs short: what a cache may hold of it, in bytes.

    Args:
        now: for the time being.
        most: if others give all back that they hold. It may be less than `now`, for a moment.
    """

    now: int
    most: int


def left_of(
    info: MemoryInfo, before: Left | None, held: int, least: int, asked: int, enough: int
) -> Left | None:
    """What there is for a cache after another look; None: all that it asks for.

    Args:
        info: what was seen.
        before: what there was after the last look.
        held: bytes that the cache holds.
        least: that any request needs, which are left in any case.
        asked: that it may hold where there is memory enough.
        enough: as drawn above.
    """
    fitting = held + info.free - enough
    if info.free < enough // 2:
        now = fitting
    elif before is None:
        return None
    else:
        now = fitting if info.free > enough else before.now
    if now >= asked:
        return None
    return Left(max(least, now), max(least, fitting + (info.others or 0)))


class Pressure:
    """Looks now and then; see the module. Belongs to the engine's thread.

    Args:
        look: what the device says of its memory.
        total: bytes that there are.
        clock: seconds.
    """

    def __init__(
        self,
        look: Callable[[], MemoryInfo],
        total: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look = look
        self._enough = min(ENOUGH_BYTES, total // 16)
        self._clock = clock
        self._next = self._next_warning = -1.0
        self.left: Left | None = None
        """As of the last look; None: there is enough."""

    @property
    def due(self) -> bool:
        """Whether the last look was some time ago."""
        return self._clock() >= self._next

    def look(self, held: int, least: int, asked: int) -> int:
        """See `left_of`. Returns bytes that are missing right now to what is enough."""
        now = self._clock()
        self._next = now + LOOK_S
        info = self._look()
        self.left = left_of(info, self.left, held, least, asked, self._enough)
        if self.left is not None and self.left.now < held:
            self._warn(now, info.free, self.left.now)
        return self._enough - info.free if info.free < self._enough // 2 else 0

    def may_come(self, nbytes: int) -> bool:
        """Whether so many bytes are free, or would be if others gave back what they hold."""
        info = self._look()
        return nbytes <= info.free + (info.others or 0)

    def _warn(self, now: float, free: int, left: int) -> None:
        if now >= self._next_warning:
            self._next_warning = now + _WARN_EVERY_S
            log.warning(
                "the machine's memory runs short (%s are free beside a reserve): the KV cache goes"
                " on with %s until there is more",
                format_bytes(free), format_bytes(left),
            )  # fmt: skip
