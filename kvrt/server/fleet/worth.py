"""What it costs that a model is not loaded."""

import math
from dataclasses import dataclass

MEMORY_S = 120.0
"""Requests of so long ago count 1/e of those of now."""


@dataclass(slots=True)
class Demand:
    """How often a model is asked for, of late."""

    _weight: float = 0.0
    _at: float = 0.0

    def note(self, now: float) -> None:
        """It was asked for."""
        self._weight = self._faded(now) + 1.0
        self._at = now

    def rate(self, now: float) -> float:
        """Requests a second."""
        return self._faded(now) / MEMORY_S

    def _faded(self, now: float) -> float:
        return self._weight * math.exp((self._at - now) / MEMORY_S)


def missed(rate: float, load_s: float, objective: float | None) -> float:
    """What one cold start costs: the seconds that requests wait for it, all together; with an
    objective for the time to the first token, the requests that miss it.

    Args:
        rate: requests a second.
        load_s: seconds that loading takes.
        objective: seconds.
    """
    if objective is None:
        return load_s * (1.0 + rate * load_s / 2)
    return 1.0 + rate * (load_s - objective) if load_s > objective else 0.0


def worth(rate: float, load_s: float, nbytes: int, objective: float | None = None) -> float:
    """What is lost a second, and for each byte that is gained, while a model is not loaded.

    A model that is loaded within the objective costs nobody anything: it is the first to go. Of two
    of which this is so, or that nobody has asked for, the one that is loaded sooner goes.
    """
    lost = rate * missed(rate, load_s, objective)
    return (lost + 1e-9 * load_s * (1e-3 + rate)) / max(1, nbytes)
