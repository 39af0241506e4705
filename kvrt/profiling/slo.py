"""What answers must keep to: ``ttft_p95=300ms,tpot_p50=50ms``.

ttft  from submission to the first token
tpot  for each token after the first
e2e   from submission to the last token
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvrt.errors import ConfigError

TERM = re.compile(r"(ttft|tpot|e2e)_p([1-9][0-9]?)=([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Objective:
    """A percentile of a time is to be no more than a bound.

    Args:
        metric: ``ttft``, ``tpot`` or ``e2e``.
        percentile: from 1 to 99.
        seconds: the bound.
    """

    metric: str
    percentile: int
    seconds: float

    def excess(self, times: Mapping[str, Sequence[float]]) -> float:
        """How many times the bound the percentile is: up to 1, it is kept.

        Args:
            times: of each metric, in seconds, of all requests; by the nearest rank.
        """
        values = sorted(times[self.metric])
        if not values:
            return 0.0
        rank = math.ceil(self.percentile / 100 * len(values))
        return values[rank - 1] / self.seconds


def objectives(text: str) -> tuple[Objective, ...]:
    """Read several, with commas between.

    Raises:
        ConfigError: one is none.
    """
    found = []
    for part in text.split(","):
        match = TERM.fullmatch(part.strip())
        if match is None or not float(match[3]):
            raise ConfigError(
                f"slo: {part.strip()[:60]!r} is none",
                fix="write ttft_p95=300ms, tpot_p50=50ms or e2e_p99=10s, with commas between",
            )
        scale = 1e-3 if match[4] == "ms" else 1.0
        found.append(Objective(match[1], int(match[2]), float(match[3]) * scale))
    return tuple(found)
