"""What became of cached pages, for whoever sends requests to where their prefixes are."""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kvrt.kv.tiers.names import PageName

EventKind = Literal["stored", "removed", "cleared"]

KEPT_EVENTS = 10_000


@dataclass(frozen=True, slots=True)
class CacheEvent:
    """Something happened to a page on the device.

    Args:
        number: counts events from 1 on, without a gap.
        kind: ``stored``: the page can be reused from now on; ``removed``: not any more;
            ``cleared``: none of them.
        name: of the page: its key, its parent's key and its tokens; None if ``cleared``.
    """

    number: int
    kind: EventKind
    name: PageName | None


class EventLog:
    """The last events. One thread adds, any thread reads.

    Args:
        kept: how many events are remembered.
    """

    def __init__(self, kept: int = KEPT_EVENTS) -> None:
        self._events: deque[CacheEvent] = deque(maxlen=kept)
        self._last = 0
        self._lock = threading.Lock()

    def add(self, kind: EventKind, names: Sequence[PageName | None]) -> None:
        with self._lock:
            for name in names:
                self._last += 1
                self._events.append(CacheEvent(self._last, kind, name))

    @property
    def last(self) -> int:
        """The number of the last event; 0: there was none."""
        return self._last

    def since(self, number: int) -> tuple[CacheEvent, ...]:
        """The events after number `number`, the oldest first.

        If the first one is not number ``number + 1``, those between are forgotten: whoever follows
        the events does not know what is cached, and should take it that nothing is.
        """
        with self._lock:
            skipped = max(0, number - self._last + len(self._events))
            return tuple(self._events)[skipped:]
