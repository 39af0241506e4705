"""How many chunks may be held: what was asked for; less while the device refuses more, other
tenants of it are due what is asked for, or the machine's memory runs short."""

import enum
import threading

_FIRST_STEPS, _MOST_STEPS = 32, 1024
"""After a refusal, so many steps go by before more is asked of the device; twice as many each time
it refuses again soon. To ask in vain costs a step."""


class LimitChange(enum.Enum):
    """What became of a change of the memory limit."""

    APPLIED = "applied"
    """The memory held is within it, and so is every step planned from now on."""

    DEFERRED = "deferred"
    """More is held. No more is taken, and it is given back as it comes free."""

    STALE = "stale"
    """A change with the same or a higher revision came before; this one was ignored."""


class Limit:
    """A limit that comes back. Any thread may `ask` and look; the rest is the engine's thread's.

    Args:
        chunks: that may be held.
        nbytes: what the caller asked for, which `chunks` is rounded down from.
    """

    def __init__(self, chunks: int, nbytes: int) -> None:
        self._lock = threading.Lock()
        self._revision: int | None = None
        self._left: tuple[int, int] | None = None  # chunks and bytes that others leave
        self.ask(chunks, nbytes)

    def ask(self, chunks: int, nbytes: int, revision: int | None = None) -> bool:
        """A new limit, whatever was refused before.

        Args:
            revision: numbers the caller's changes; None: it is the newest.

        Returns:
            False if a change with the same or a higher revision came before: nothing was changed.
        """
        with self._lock:
            if revision is not None:
                if self._revision is not None and revision <= self._revision:
                    return False
                self._revision = revision
            self._chunks = self.asked_chunks = chunks
            self._nbytes = self.asked_bytes = nbytes
            self._patience = _FIRST_STEPS
            self._steps: int | None = None  # since the last refusal; None: there was none for long
        return True

    @property
    def chunks(self) -> int:
        """That may be held now."""
        left = self._left
        return self._chunks if left is None else min(self._chunks, left[0])

    @property
    def nbytes(self) -> int:
        """The same in bytes, as it was asked for."""
        left = self._left
        return self._nbytes if left is None else min(self._nbytes, left[1])

    @property
    def in_bytes(self) -> tuple[int, int]:
        """What holds now, and what was asked for."""
        with self._lock:
            return self.nbytes, self.asked_bytes

    @property
    def squeezed(self) -> bool:
        """Others leave less than may be held but for them."""
        return self._left is not None and self._left[0] < self._chunks

    def leave(self, left: tuple[int, int] | None) -> None:
        """Others leave so many chunks, and bytes, until this is said again; None: all."""
        self._left = left

    @property
    def lowered(self) -> bool:
        """The device refused more."""
        return self._chunks < self.asked_chunks

    def lower(self, chunks: int, nbytes: int) -> None:
        """The device has no more than this now."""
        with self._lock:
            if self._steps:  # zero is the same refusal, which found a place for less yet
                self._patience = min(2 * self._patience, _MOST_STEPS)
            self._chunks, self._nbytes = chunks, nbytes
            self._steps = 0

    def step(self) -> bool:
        """A step has ended. Returns whether what was asked for holds again."""
        with self._lock:
            if self._steps is None:
                return False
            self._steps += 1
            if self._steps > 2 * self._patience:
                self._patience, self._steps = _FIRST_STEPS, None
                return False
            return self._steps >= self._patience and self._restored()

    def restore(self) -> bool:
        """Let what was asked for hold again. Returns whether it did not."""
        with self._lock:
            return self._restored()

    def _restored(self) -> bool:
        was = self.lowered
        self._chunks, self._nbytes = self.asked_chunks, self.asked_bytes
        return was
