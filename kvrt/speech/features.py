"""What an encoder of speech reads: the power of sound in bands of the mel scale, as logarithms.

    frame t of band b:  log10(max(filter[b] @ |spectrum of 25 ms around t * 10 ms|^2, 1e-10))
    then                (max(that, the most of all frames - 8) + 4) / 4

The same numbers as transformers' ``WhisperFeatureExtractor`` makes. The bands are those of Slaney's
Auditory Toolbox (1998): as wide as each other up to 1 kHz, then growing, all of one area.
"""

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

RATE = 16000
"""Samples a second."""

WIDTH = 400
"""Samples of a frame's spectrum."""

HOP = 160
"""Samples from frame to frame."""

FLOOR = 1e-10
RANGE = 8.0
AT_ONCE = 6000
"""Frames, a minute: what all the spectra of an hour would take is 580 MB."""


def features_of(samples: NDArray[np.float32], bins: int, least: int) -> Tensor:
    """Float32 [bins, frames], a frame for each `HOP` samples that are whole.

    Args:
        samples: of one channel, `RATE` a second.
        bins: bands.
        least: frames; silence is put behind fewer, before anything else is done.
    """
    sound = torch.from_numpy(np.ascontiguousarray(samples, np.float32))
    sound = F.pad(sound, (0, max(0, least * HOP - len(sound))))
    half = WIDTH // 2
    padded = F.pad(sound[None], (half, half), mode="reflect")[0]
    filters, window = _filters(bins), torch.hann_window(WIDTH)
    frames = len(sound) // HOP
    made = torch.empty(bins, frames)
    for begin in range(0, frames, AT_ONCE):
        end = min(begin + AT_ONCE, frames)
        piece = padded[begin * HOP : (end - 1) * HOP + WIDTH]
        spectrum = torch.stft(piece, WIDTH, HOP, window=window, center=False, return_complex=True)
        power = (spectrum.abs() ** 2).contiguous()
        made[:, begin:end] = (filters @ power).clamp(min=FLOOR).log10()
    return (made.clamp(min=float(made.max()) - RANGE) + 4.0) / 4.0


@functools.cache
def _filters(bins: int) -> Tensor:
    """How much of each frequency is in each band: float32 [bins, frequencies]."""
    heard = np.linspace(0.0, RATE // 2, 1 + WIDTH // 2)
    edges = _hertz(np.linspace(0.0, _mel(RATE / 2), bins + 2))
    slopes = edges - heard[:, None]
    widths = np.diff(edges)
    rising, falling = -slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]
    bands = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))
    return torch.from_numpy(bands.T.astype(np.float32)).contiguous()


KINK_HZ, KINK_MEL, STEP = 1000.0, 15.0, 27.0 / math.log(6.4)


def _mel(hertz: float) -> float:
    if hertz < KINK_HZ:
        return 3.0 * hertz / 200.0
    return KINK_MEL + math.log(hertz / KINK_HZ) * STEP


def _hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    above = KINK_HZ * np.exp((mels - KINK_MEL) / STEP)
    return np.where(mels < KINK_MEL, 200.0 * mels / 3.0, above)
