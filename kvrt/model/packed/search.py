"""Scales, offsets and codes for groups of floats, in numpy, whose operators wake no other threads.

A group is a column, [elements, groups], so that every operation runs along rows. All of them are
of IEEE 754's basic operations in a fixed order: the codes are the same on every machine.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

STRETCHES = ((1.0, 0.0), (1.0, -0.2), (1.0, 0.2), (0.96, -0.4), (0.96, 0.4))
"""Ways to lay a group's range over that of the codes: by what it is stretched, and then moved.

These five leave hardly more error than the twenty of llama.cpp's own search."""

LARGEST_HALF = np.float32(65504)


def symmetric(groups: Array) -> tuple[Array, Array]:
    """Codes of 8 bits, of which 128 is zero, with a scale.

    The scale of a group is its largest magnitude / 127, and a code the nearest whole number of it,
    halves away from zero: the bits of ggml's own function.

    Args:
        groups: float32 [elements, groups].

    Returns:
        Codes, uint8 [elements, groups], and scales, float16 [groups].
    """
    scales = np.abs(groups).max(0) / np.float32(127)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    ratio = groups * inverse
    ratio += np.copysign(np.float32(0.5), ratio)
    return (np.trunc(ratio) + 128).astype(np.uint8), scales.astype(np.float16)


def affine(groups: Array, bits: int) -> tuple[Array, Array, Array]:
    """Codes with a scale and an offset, which have nearly the least sum of squared errors.

    Of several ways to round a group to codes, each with the scale and offset that fit it best, the
    best; and with these, rounded to float16, the nearest codes.

    Args:
        groups: float32 [elements, groups], of magnitudes up to `LARGEST_HALF`.

    Returns:
        Codes, uint8 [elements, groups], scales and offsets, float16 [groups].
    """
    top = np.float32((1 << bits) - 1)
    scales, offsets = _searched(groups, top)
    scales = scales.astype(np.float16)
    offsets = offsets.clip(-LARGEST_HALF, LARGEST_HALF).astype(np.float16)
    divisor = np.where(scales == 0, np.float32(1), scales)
    codes = (groups - offsets.astype(np.float32)) / divisor
    return codes.round().clip(0, top).astype(np.uint8), scales, offsets


def _searched(groups: Array, top: np.float32) -> tuple[Array, Array]:
    low, high = groups.min(0), groups.max(0)
    span, middle = high - low, low / 2 + high / 2
    span[span == 0] = 1
    count, total = np.float32(len(groups)), np.add.reduce(groups, 0)
    best_scale, best_offset, best = (np.zeros_like(low) for _ in range(3))
    best -= 1
    codes, products = np.empty_like(groups), np.empty_like(groups)
    for stretch, shift in STRETCHES:
        factor = top * np.float32(stretch) / span
        np.multiply(groups, factor, out=codes)
        codes += top / 2 + np.float32(shift) - middle * factor
        np.rint(codes, out=codes)
        np.maximum(codes, 0, out=codes)
        np.minimum(codes, top, out=codes)
        # The least squares of scale * codes + offset; sums of codes and of their squares are exact.
        code = np.add.reduce(codes, 0)
        product = np.add.reduce(np.multiply(codes, groups, out=products), 0)
        square = np.add.reduce(np.multiply(codes, codes, out=products), 0)
        spread = count * square - code * code
        spread[spread == 0] = 1
        covariance = count * product - code * total
        scale = covariance / spread
        explained = scale * covariance  # the more, the less is left as error
        better = explained > best
        np.copyto(best, explained, where=better)
        np.copyto(best_scale, scale, where=better)
        np.copyto(best_offset, (total - scale * code) / count, where=better)
    return best_scale, best_offset
