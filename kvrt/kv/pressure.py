"""What a machine's memory leaves the KV cache, as others take of it and give it back.

    free   |---- none ----|-- low --|----- enough -----|------------------->
           <- reserve ->  |  less   |  stays           |  more again

The reserve is the backend's (`MemoryInfo.free` leaves it out): once that is used up, the system
ends a process, most likely the one that holds most. So pages go before.
"""

import logging
import time
from collections.abc import Callable

from kvrt.units import format_bytes

log = logging.getLogger(__name__)

ENOUGH_BYTES = 64 << 20
"""Half of it is low. Of a small machine, a sixteenth of its memory is enough."""

LOOK_S = 0.1
"""How often it is looked: what is low and the reserve last longer, at a gigabyte a second."""

_WARN_EVERY_S = 60.0

ALL = 1 << 62
"""Bytes: as many as the cache may hold but for this."""


class Pressure:
    """See the module. Belongs to the engine's thread.

    Args:
        free: bytes that the system can still give.
        total: that there are.
        clock: seconds.
    """

    def __init__(
        self, free: Callable[[], int], total: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._free = free
        self._enough = min(ENOUGH_BYTES, total // 16)
        self._clock = clock
        self._left = ALL
        self._next = self._next_warning = -1.0

    def left(self, held: int, least: int, asked: int) -> int:
        """Bytes that the cache may hold now.

        Args:
            held: that it holds.
            least: that any request needs.
            asked: that it may hold where there is memory enough.
        """
        now = self._clock()
        if now < self._next:
            return self._left
        self._next = now + LOOK_S
        free = self._free()
        if free < self._enough // 2:
            self._left = max(least, held - (self._enough - free))
            self._warn(now, free)
        elif self._left < ALL and free > self._enough:
            self._left = held + free - self._enough
            if self._left >= asked:
                self._left = ALL
        return self._left

    def _warn(self, now: float, free: int) -> None:
        if now >= self._next_warning:
            self._next_warning = now + _WARN_EVERY_S
            log.warning(
                "the machine's memory runs short (%s are free beside a reserve): the KV cache goes"
                " on with %s until there is more",
                format_bytes(free), format_bytes(self._left),
            )  # fmt: skip
