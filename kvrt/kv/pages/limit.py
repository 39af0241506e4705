"""How many chunks may be held: what was asked for, or less while the device refuses more."""

_FIRST_STEPS, _MOST_STEPS = 32, 1024
"""After a refusal, so many steps go by before more is asked of the device; twice as many each time
it refuses again soon. To ask in vain costs a step."""


class Limit:
    """A limit that comes back.

    Args:
        chunks: that may be held.
        nbytes: what the caller asked for, which `chunks` is rounded down from.
    """

    def __init__(self, chunks: int, nbytes: int) -> None:
        self.ask(chunks, nbytes)

    def ask(self, chunks: int, nbytes: int) -> None:
        """A new limit, whatever was refused before."""
        self.chunks = self.asked_chunks = chunks
        self.nbytes = self.asked_bytes = nbytes
        self._patience = _FIRST_STEPS
        self._steps: int | None = None  # since the last refusal; None: there was none for long

    @property
    def lowered(self) -> bool:
        """The device refused more."""
        return self.chunks < self.asked_chunks

    def lower(self, chunks: int, nbytes: int) -> None:
        """The device has no more than this now."""
        if self._steps:  # zero is the same refusal, which found a place for less yet
            self._patience = min(2 * self._patience, _MOST_STEPS)
        self.chunks, self.nbytes = chunks, nbytes
        self._steps = 0

    def step(self) -> bool:
        """A step has ended. Returns whether what was asked for holds again."""
        if self._steps is None:
            return False
        self._steps += 1
        if self._steps > 2 * self._patience:
            self._patience, self._steps = _FIRST_STEPS, None
            return False
        return self._steps >= self._patience and self.restore()

    def restore(self) -> bool:
        """Let what was asked for hold again. Returns whether it did not."""
        was = self.lowered
        self.chunks, self.nbytes = self.asked_chunks, self.asked_bytes
        return was
