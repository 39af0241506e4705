"""Quantiles of any number of values at flat memory, each right to one in a hundred.

A value counts for the bucket of its logarithm (Masson, Rim, Lee 2019, "DDSketch: a fast and
fully-mergeable quantile sketch with relative-error guarantees"): 700 buckets hold all from 1e-3 to
1e3, and the file's order changes nothing.
"""

import math
from collections import Counter
from dataclasses import dataclass, field

ERROR = 0.01
"""Of a quantile, at most, as a part of itself."""

BASE = (1 + ERROR) / (1 - ERROR)
SMALLEST = 1e-9
"""What is nearer to 0 counts as 0."""


@dataclass(slots=True)
class Sketch:
    """Of numbers."""

    count: int = 0
    total: float = 0.0
    least: float = math.inf
    most: float = -math.inf
    _buckets: Counter[tuple[int, int]] = field(default_factory=Counter)

    def add(self, value: float) -> None:
        """One number more; what is not finite is passed over."""
        if not math.isfinite(value):
            return
        self.count += 1
        self.total += value
        self.least, self.most = min(self.least, value), max(self.most, value)
        if abs(value) < SMALLEST:
            self._buckets[0, 0] += 1
            return
        place = math.ceil(math.log(abs(value), BASE))
        self._buckets[(1, place) if value > 0 else (-1, -place)] += 1

    def quantile(self, part: float) -> float:
        """So that this part of the values, from 0 to 1, is no greater. There must be some."""
        left = part * (self.count - 1)
        for (sign, place), count in sorted(self._buckets.items()):
            left -= count
            if left < 0:
                middle = sign * 2 * BASE ** (sign * place) / (BASE + 1)
                return min(max(middle, self.least), self.most)
        return self.most

    def as_json(self) -> dict[str, float]:
        """What there is to say of the values; without any, that there are none."""
        if not self.count:
            return {"count": 0}
        quantiles = {f"p{percent}": self.quantile(percent / 100) for percent in (5, 50, 95, 99)}
        return {
            "count": self.count,
            "mean": self.total / self.count,
            "min": self.least,
            **quantiles,
            "max": self.most,
        }
