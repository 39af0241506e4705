"""How sure a share or a mean is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.959964
"""Of the normal distribution: 95 % are no further from the middle."""

DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Interval:
    """A value, and between what it lies in 95 of 100 cases."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def wilson(wins: int, count: int) -> Interval | None:
    """Of a share of so many (Wilson 1927, "Probable inference, the law of succession, and
    statistical inference"); None: there are none."""
    if not count:
        return None
    share, spread = wins / count, Z * Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    # The ends are exact where none or all have won, whatever rounding says.
    low = 0.0 if wins == 0 else max(0.0, middle - half)
    high = 1.0 if wins == count else min(1.0, middle + half)
    return Interval(share, low, high)


def bootstrap(values: Sequence[float], seed: int = 0) -> Interval | None:
    """Of a mean: the percentiles of 2,000 means of as many values, drawn with replacement (Efron
    1979, "Bootstrap methods: another look at the jackknife"); None: there are none."""
    if not values:
        return None
    given = np.asarray(values, np.float64)
    random = np.random.default_rng(seed)
    means = [given[random.integers(0, len(given), len(given))].mean() for _ in range(DRAWS)]
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(given.mean()), float(low), float(high))
