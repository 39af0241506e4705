"""How fast a batch goes on, and how long it will take."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from kvrt.batches.words import Batch


@dataclass(frozen=True, slots=True)
class Standing:
    """How far and how fast a batch has come, since somebody began to work on it here.

    Args:
        seconds: that it was worked on.
        lines: that were answered in this time, with errors or without.
        lines_per_s, tokens_per_s: of those, and of what was said.
        cached: the part of all prompts that was not computed, because its pages were there.
        seconds_left: at this rate; None: it is not known yet.
    """

    seconds: float
    lines: int
    lines_per_s: float
    tokens_per_s: float
    cached: float
    seconds_left: float | None


class Pace:
    """What has become of a batch since it was `begun` here.

    Args:
        begun: as it stood then.
        clock: seconds, from anywhere.
    """

    def __init__(self, begun: Batch, clock: Callable[[], float] = time.monotonic) -> None:
        self.batch = begun
        self._begun = begun
        self._clock = clock
        self._since = clock()
        self._until: float | None = None

    def watch(self, batch: Batch) -> None:
        """It has come so far."""
        if not self._begun.total:
            self._begun = batch  # it was just checked
        self.batch = batch

    def stop(self) -> None:
        """Time counts no more."""
        if self._until is None:
            self._until = self._clock()

    @property
    def standing(self) -> Standing:
        """As of now."""
        begun, batch = self._begun, self.batch
        seconds = (self._clock() if self._until is None else self._until) - self._since
        lines, said = begun.left - batch.left, batch.tokens.said - begun.tokens.said
        prompt = batch.tokens.prompt
        return Standing(
            seconds=seconds,
            lines=lines,
            lines_per_s=lines / seconds if seconds else 0.0,
            tokens_per_s=said / seconds if seconds else 0.0,
            cached=batch.tokens.cached / prompt if prompt else 0.0,
            seconds_left=batch.left * seconds / lines if lines else None,
        )
