"""How fast a batch goes on, how long it will take, and what it costs."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from kvrt.batches.price import Price
from kvrt.batches.words import Batch
from kvrt.machine.energy import Energy

OTHER_DEVICE = "the model runs on a device whose energy is not counted"


@dataclass(frozen=True, slots=True)
class Standing:
    """How far and how fast a batch has come, since somebody began to work on it here.

    Args:
        seconds: that it was worked on.
        lines: that were answered in this time, with errors or without.
        lines_per_s, tokens_per_s: of those, and of what was said.
        cached: the part of all prompts that was not computed, because its pages were there.
        seconds_left: at this rate; None: it is not known yet.
        energy_j: of the machine's processors in this time, whoever they worked for; None: it is
            not known.
        energy_why: why not.
        cost: at the price that was given; None: none was, or it is of the energy.
    """

    seconds: float
    lines: int
    lines_per_s: float
    tokens_per_s: float
    cached: float
    seconds_left: float | None
    energy_j: float | None = None
    energy_why: str | None = None
    cost: float | None = None


class Pace:
    """What has become of a batch since it was `begun` here.

    Args:
        begun: as it stood then.
        clock: seconds, from anywhere.
        price: of the work.
        energy: that it takes; begun with it.
    """

    def __init__(
        self,
        begun: Batch,
        clock: Callable[[], float] = time.monotonic,
        *,
        price: Price | None = None,
        energy: Energy | None = None,
    ) -> None:
        self.batch = begun
        self._begun = begun
        self._clock = clock
        self._since = clock()
        self._until: float | None = None
        self._price = price
        self._energy = Energy() if energy is None else energy
        self._joules = self._energy.joules

    def watch(self, batch: Batch) -> None:
        """It has come so far."""
        if not self._begun.total:
            self._begun = batch  # it was just checked
        self.batch = batch
        self._measure()

    def on(self, backend: str) -> None:
        """A model is loaded on a device of this backend."""
        if backend != "cpu":
            self._energy.without(OTHER_DEVICE)

    def stop(self) -> None:
        """Time counts no more."""
        self._measure()
        if self._until is None:
            self._until = self._clock()

    def _measure(self) -> None:
        if self._until is None:
            self._joules = self._energy.joules

    @property
    def standing(self) -> Standing:
        """As of now."""
        self._measure()
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
            energy_j=self._joules,
            energy_why=self._energy.why,
            cost=None if self._price is None else self._price.of(seconds, self._joules),
        )
