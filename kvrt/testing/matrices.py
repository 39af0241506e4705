"""What `kvrt.spi.WeightFormat` means, read byte by byte, and rows to try products with."""

import math
import struct
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvrt.spi import WeightFormat
from kvrt.spi.matrices import Offset, Scale, TwoLevel

Floats = NDArray[np.float32]


def values(format: WeightFormat, plain: Tensor, width: int) -> Tensor:
    """The values of rows in the plain form: float32 [rows, width], exactly."""
    rows = [_row(format, bytes(row.tolist()), width) for row in plain.cpu()]
    return torch.from_numpy(np.stack(rows))


def _row(format: WeightFormat, row: bytes, width: int) -> Floats:
    group = format.group or width
    arrays = _arrays(format, row, width)
    code, scale, offset = next(arrays), next(arrays), next(arrays)
    assert not row[sum(len(piece) for piece in pieces(format, row, width)) :]
    in_group = np.arange(width) // group
    if format.table:
        code = np.array(format.table, np.float32)[code.astype(int)]
    elif format.codes == "e4m3":
        code = np.array([_e4m3(int(byte)) for byte in code], np.float32)
    if format.offset == "none":
        return scale[in_group] * (code - np.float32(format.zero))
    if format.offset == "zeros":
        return scale[in_group] * (code - offset[in_group])
    return scale[in_group] * code + offset[in_group]


def pieces(format: WeightFormat, row: bytes, width: int) -> list[bytes]:
    """A row cut into its five arrays, what fills them up to 4 bytes included."""
    groups = width // (format.group or width)
    sizes = [sum(-(-width * w // 8) for w in (8, 4, 2, 1) if format.bits & w)]
    for kind in (format.scale, format.offset):
        if isinstance(kind, TwoLevel):
            sizes += [sum(-(-groups * w // 8) for w in (8, 4, 2, 1) if kind.bits & w)]
            sizes += [2 * (width // kind.block)]
        else:
            item = {"none": 0, "float16": 2, "float32": 4}.get(kind, 1)
            sizes += [item * groups, 0]
    cut, at = [], 0
    for size in sizes:
        cut.append(row[at : at + -(-size // 4) * 4])
        at += len(cut[-1])
    return cut


def _arrays(format: WeightFormat, row: bytes, width: int) -> Iterator[Floats]:
    """Codes of elements, scales of groups, offsets of groups."""
    codes, scales, scale_factors, offsets, offset_factors = pieces(format, row, width)
    groups = width // (format.group or width)
    yield np.array(_whole(codes, width, format.bits), np.float32)
    yield _numbers(format.scale, scales, scale_factors, groups, width)
    yield _numbers(format.offset, offsets, offset_factors, groups, width)


def _numbers(
    kind: Scale | Offset, stored: bytes, factors: bytes, groups: int, width: int
) -> Floats:
    if isinstance(kind, TwoLevel):
        whole = np.array(_whole(stored, groups, kind.bits), np.float32) - np.float32(kind.zero)
        factor = np.array(struct.unpack_from(f"<{width // kind.block}e", factors), np.float32)
        return factor[np.arange(groups) * (width // groups) // kind.block] * whole
    if kind == "none":
        return np.zeros(groups, np.float32)
    if kind in ("float16", "float32"):
        letter = "e" if kind == "float16" else "f"
        return np.array(struct.unpack_from(f"<{groups}{letter}", stored), np.float32)
    meaning: dict[str, Callable[[int], float]] = {
        "zeros": float,
        "e8m0": lambda byte: 2.0 ** (byte - 128),
        "e4m3": lambda byte: _e4m3(byte) / 2,
    }
    return np.array([meaning[kind](byte) for byte in stored[:groups]], np.float32)


def _whole(stored: bytes, numbers: int, bits: int) -> list[int]:
    found, low, start = [0] * numbers, 0, 0
    for w in (8, 4, 2, 1):
        if bits & w:
            for i in range(numbers):
                byte = stored[start + i * w // 8]
                found[i] += (byte >> i * w % 8) % 2**w << low
            low, start = low + w, start + -(-numbers * w // 8)
    return found


def _e4m3(byte: int) -> float:
    """E4M3: a sign, four bits of exponent with 7 added, three of mantissa."""
    sign, exponent, mantissa = -1 if byte & 128 else 1, byte >> 3 & 15, byte & 7
    if byte & 127 == 127:
        return math.nan
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (8 + mantissa) * 2.0 ** (exponent - 10)
