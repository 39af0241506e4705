"""What `kvrt.spi.WeightFormat` means, read byte by byte, and rows to try products with."""

import math
import struct
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvrt.spi import WeightFormat
from kvrt.spi.matrices import Offset, Scale, TwoLevel

Floats = NDArray[np.float32]

_SIX = TwoLevel(6)
_FOUR_BIT_TABLE = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
FORMATS: Mapping[str, WeightFormat] = {
    format.name: format
    for format in (
        WeightFormat("q4_0", 4, 32, "float16", zero=8),
        WeightFormat("q4_1", 4, 32, "float16", offset="float16"),
        WeightFormat("q5_0", 5, 32, "float16", zero=16),
        WeightFormat("q5_1", 5, 32, "float16", offset="float16"),
        WeightFormat("q8_0", 8, 32, "float16", zero=128),
        WeightFormat("q2_k", 2, 16, TwoLevel(4), offset=TwoLevel(4)),
        WeightFormat("q3_k", 3, 16, TwoLevel(6, 32), zero=4),
        WeightFormat("q4_k", 4, 32, _SIX, offset=_SIX),
        WeightFormat("q5_k", 5, 32, _SIX, offset=_SIX),
        WeightFormat("q6_k", 6, 16, TwoLevel(8, 128), zero=32),
        WeightFormat("iq4_nl", 4, 32, "float16", table=_FOUR_BIT_TABLE),
        WeightFormat("iq4_xs", 4, 32, TwoLevel(6, 32), table=_FOUR_BIT_TABLE),
        WeightFormat("tq2_0", 2, 256, "float16", zero=1),
        WeightFormat("mxfp4", 4, 32, "e8m0", table=_E2M1),
        WeightFormat("nvfp4", 4, 16, "e4m3", table=_E2M1),
        WeightFormat("int4 by 64", 4, 64, "float32", offset="zeros"),
        WeightFormat("int4 by 128", 4, 128, "float32", zero=8),
        WeightFormat("int8 by row", 8, 0, "float32", zero=128),
        WeightFormat("fp8 by 128", 8, 128, "float32", codes="e4m3"),
    )
}
"""Formats of every kind, for tests."""


def random_rows(format: WeightFormat, rows: int, width: int, seed: int) -> Tensor:
    """Rows in the plain form, of a size that keeps products of `width` elements near 1.

    Every number of scales and codes is as likely as any other.
    """
    rng = np.random.default_rng(seed)
    plain = rng.integers(0, 256, (rows, format.row_bytes(width)), dtype=np.uint8)
    at, groups = format.sections(width), width // (format.group or width)
    largest = max(map(abs, format.table)) if format.table else 2**format.bits
    largest = 448 if format.codes == "e4m3" else largest
    for kind, numbers, factors, most in (
        (format.scale, at.scales, at.scale_factors, largest),
        (format.offset, at.offsets, at.offset_factors, 1),
    ):
        size = 4 / width**0.5 / most
        if isinstance(kind, TwoLevel):
            size /= 2**kind.bits
        elif kind == "zeros":
            plain[:, numbers.start : numbers.end] %= 2**format.bits
        elif kind == "e8m0":  # a power of two near the size
            power = rng.integers(-2, 2, (rows, groups)) + round(math.log2(size)) + 128
            plain[:, numbers.start : numbers.end] = power
        elif kind == "e4m3":  # from 2^-9 on, and no number above
            plain[:, numbers.start : numbers.end] %= 40
        for section, stored in (
            (factors, np.float16),
            (numbers, {"float16": np.float16, "float32": np.float32}.get(str(kind))),
        ):
            if stored is not None and section.numbers:
                random = rng.uniform(-size, size, (rows, section.numbers)).astype(stored)
                plain[:, section.start : section.end] = random.view(np.uint8)
    if format.codes == "e4m3":  # 127 and 255 are no numbers
        codes = plain[:, at.codes.start : at.codes.end]
        codes[codes & 127 == 127] = 0
    for section, behind in zip(at, (*(later.start for later in at[1:]), None), strict=True):
        plain[:, section.end : behind] = 0
    return torch.from_numpy(plain)


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
