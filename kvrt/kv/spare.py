"""How much memory that no page needs is kept."""

_WINDOW_STEPS = 32
"""While steps run, memory is given back if it was spare in each of so many steps."""

_RETURNED_AT_ONCE = 32
"""Chunks given back after one window at most, so that no step waits long: 20 us each on a CPU."""


class Spare:
    """Chunks without a page in use are kept for a while: the next ones may need them.

    Args:
        floor: chunks that are held even when nothing runs.
    """

    def __init__(self, floor: int) -> None:
        self._floor = floor
        self._steps = self._least = 0  # of the window

    def after_step(self, needed: int, spare: int, limit: int) -> int:
        """A step has ended: how many of the `spare` chunks to keep.

        Args:
            needed: chunks with a page that is in use.
            limit: chunks that may be held.
        """
        keep = min(spare, max(0, limit - needed))
        self._least = min(self._least, spare)
        self._steps += 1
        if self._steps == _WINDOW_STEPS:
            surplus = self._least - max(0, self._floor - needed)
            if surplus > 0:
                keep = max(0, keep - min(surplus, _RETURNED_AT_ONCE))
            self._steps, self._least = 0, keep
        return keep

    def when_idle(self, needed: int, limit: int) -> int:
        """Nothing runs: how many to keep, or to create."""
        self._steps = 0
        self._least = max(0, min(self._floor, limit) - needed)
        return self._least
