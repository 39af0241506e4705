"""Sound at another rate (Smith 2002, "Digital Audio Resampling"): each new sample is a sum of the
old ones around it, weighted by a sinc under a window, which lets through what both rates can hold.
"""

import math

import numpy as np
from numpy.typing import NDArray

CROSSINGS = 32
"""Zero crossings of the sinc on each side. What is lost is the last 3 % below the border."""

EDGE = 0.97
"""Where the sinc ends, as a part of the highest frequency that the lower rate can hold."""


def resampled(samples: NDArray[np.float32], rate: int, wanted: int) -> NDArray[np.float32]:
    """The same sound, `wanted` samples a second.

    Args:
        samples: of one channel, `rate` a second.
    """
    if rate == wanted or not len(samples):
        return samples
    common = math.gcd(rate, wanted)
    old, new = rate // common, wanted // common
    cut = EDGE * min(1.0, new / old)  # of the old rate's highest frequency
    reach = math.ceil(CROSSINGS / cut)
    count = -(-len(samples) * new // old)
    around = np.pad(samples, (reach, reach + old))
    made = np.empty(count, np.float32)
    taps = np.arange(-reach, reach + 1)
    # New sample n stands at n * old / new; those with one n % new have the same weights.
    for phase in range(min(new, count)):
        at, part = divmod(phase * old, new)
        distance = taps - part / new
        window = np.cos(np.clip(distance / (reach + 1), -1.0, 1.0) * np.pi / 2) ** 2
        weights = (cut * np.sinc(cut * distance) * window).astype(np.float32)
        own = made[phase::new]
        rows = np.lib.stride_tricks.sliding_window_view(around[at:], len(taps))[::old][: len(own)]
        own[:] = rows @ weights
    return made
