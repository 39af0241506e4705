"""When conversations begin: offsets in seconds, without an end."""

import math
import random
from collections.abc import Iterator
from itertools import accumulate, count, repeat
from typing import Literal, get_args

Arrivals = Literal["steady", "poisson", "bursty"]
ARRIVALS = get_args(Arrivals)

BURSTINESS = 0.25
"""The shape of the gaps' gamma distribution: 1 is Poisson, and less comes in bursts."""


def offsets(
    arrivals: Arrivals, rate: float, rng: random.Random, burstiness: float = BURSTINESS
) -> Iterator[float]:
    """Offsets of which `rate` come in a second, on average; the first is 0.

    steady   every 1/rate seconds
    poisson  gaps are exponential: each client asks whenever it likes, whatever others do
    bursty   gaps are gamma distributed with a shape below 1: long ones, and many short ones;
             their squared coefficient of variation is 1/burstiness
    """
    match arrivals:
        case "steady":
            return (number / rate for number in count())
        case "poisson":
            gaps = (rng.expovariate(rate) for _ in repeat(None))
        case "bursty":
            scale = 1 / (rate * burstiness)
            gaps = (rng.gammavariate(burstiness, scale) for _ in repeat(None))
    return accumulate(gaps, initial=0.0)


def of_trace(times: list[float], speed: float) -> Iterator[float]:
    """Offsets of a trace's times, so many times as fast; after its end, none."""
    first = min(times, default=math.inf)
    return ((time - first) / speed for time in sorted(times))
