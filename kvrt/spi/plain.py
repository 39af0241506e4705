"""The plain form of packed weights, as `kvrt.spi.WeightFormat` defines it, written and read.

For what makes it of a file's bytes, and for `PackedMatrices.pack`, which reads it. Needs torch, and
is imported by its own name.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvrt.spi import WeightFormat
from kvrt.spi.matrices import Offset, Scale, Section, TwoLevel, planes

FLOATS = {"float32": torch.float32, "float16": torch.float16}


def plain_rows(
    format: WeightFormat,
    codes: Tensor,
    scales: Tensor,
    *,
    scale_factors: Tensor | None = None,
    offsets: Tensor | None = None,
    offset_factors: Tensor | None = None,
) -> Tensor:
    """Rows of a matrix in the plain form.

    Args:
        format: of the rows.
        codes: uint8 [rows, width], each below 2^bits.
        scales: [rows, groups]; uint8, or float16 or float32 where the format has these.
        scale_factors: float16 [rows, blocks], where scales are `TwoLevel`.
        offsets: [rows, groups], likewise.
        offset_factors: float16 [rows, blocks], likewise.

    Returns:
        uint8 [rows, row_bytes].
    """
    rows, width = codes.shape
    plain = torch.from_numpy(np.zeros((rows, format.row_bytes(width)), np.uint8))
    at = format.sections(width)
    _put_whole(plain, at.codes, format.bits, codes)
    _put(plain, at.scales, format.scale, scales)
    _put(plain, at.scale_factors, "float16", scale_factors)
    _put(plain, at.offsets, format.offset, offsets)
    _put(plain, at.offset_factors, "float16", offset_factors)
    return plain


def unpack(format: WeightFormat, plain: Tensor, width: int) -> Tensor:
    """The values of rows in the plain form: float32 [rows, width].

    Args:
        plain: uint8 [rows, row_bytes].
    """
    scale, offset = scales(format, plain, width), offsets(format, plain, width)
    return _values(format, codes(format, plain, width), scale, offset)


def values_of(
    format: WeightFormat,
    codes: Tensor,
    scales: Tensor,
    scale_factors: Tensor | None = None,
    offsets: Tensor | None = None,
    offset_factors: Tensor | None = None,
) -> Tensor:
    """The values of what `plain_rows` takes: float32 [rows, width]."""
    scale = _meant(format.scale, scales, scale_factors)
    offset = None if offsets is None else _meant(format.offset, offsets, offset_factors)
    return _values(format, codes, scale, offset)


def _values(format: WeightFormat, codes: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    grouped = codes.view(*scale.shape, codes.shape[1] // scale.shape[1])
    if format.table:
        values = torch.tensor(format.table, dtype=torch.float32)[grouped.int()]
    elif format.codes == "e4m3":
        values = grouped.view(torch.float8_e4m3fn).float()
    else:
        values = grouped.float()
        if format.zero:
            values -= format.zero
    if offset is not None and format.offset == "zeros":
        values -= offset[..., None]
    values *= scale[..., None]
    if offset is not None and format.offset != "zeros":
        values += offset[..., None]
    return values.view(codes.shape)


def codes(format: WeightFormat, plain: Tensor, width: int) -> Tensor:
    """The codes of rows in the plain form: uint8 [rows, width]."""
    return _whole(plain, format.sections(width).codes, format.bits)


def scales(format: WeightFormat, plain: Tensor, width: int) -> Tensor:
    """The scales of each row's groups: float32 [rows, groups]."""
    at = format.sections(width)
    return _numbers(plain, at.scales, at.scale_factors, format.scale)


def offsets(format: WeightFormat, plain: Tensor, width: int) -> Tensor | None:
    """The offsets or zeros of each row's groups: float32 [rows, groups]; None without them."""
    if format.offset == "none":
        return None
    at = format.sections(width)
    return _numbers(plain, at.offsets, at.offset_factors, format.offset)


def levels(
    kind: TwoLevel, plain: Tensor, numbers: Section, factors: Section
) -> tuple[Tensor, Tensor]:
    """Scales or offsets of two levels: what is multiplied, and the factors.

    Returns:
        float32 [rows, groups], n - zero, and float16 [rows, blocks].
    """
    whole = _whole(plain, numbers, kind.bits).float() - kind.zero
    return whole, _stored(plain, factors, torch.float16)


def finite_rows(format: WeightFormat, plain: Tensor, width: int) -> Tensor:
    """Which rows have only finite values: bool [rows].

    Scales, offsets and codes of E4M3 may be none, and a product of scale and code too large.
    """
    largest = max(map(abs, format.table)) if format.table else 1 << format.bits
    finite = (scales(format, plain, width) * largest).isfinite().all(1)
    if format.codes == "e4m3":
        numbers = codes(format, plain, width).view(torch.float8_e4m3fn)
        finite &= numbers.float().isfinite().all(1)
    offset = offsets(format, plain, width)
    return finite if offset is None else finite & offset.isfinite().all(1)


def _numbers(plain: Tensor, at: Section, factors: Section, kind: Scale | Offset) -> Tensor:
    if isinstance(kind, TwoLevel):
        return _times(*levels(kind, plain, at, factors))
    return _meant(kind, _stored(plain, at, FLOATS.get(kind, torch.uint8)), None)


def _meant(kind: Scale | Offset, stored: Tensor, factors: Tensor | None) -> Tensor:
    """The scales or offsets that are stored so: float32 [rows, groups]."""
    if isinstance(kind, TwoLevel):
        assert factors is not None
        return _times(stored.float() - kind.zero, factors)
    if kind == "e8m0":
        return (2.0 ** (stored.double() - 128)).float()
    if kind == "e4m3":
        return stored.view(torch.float8_e4m3fn).float() / 2
    return stored.float()


def _times(numbers: Tensor, factors: Tensor) -> Tensor:
    in_block = numbers.shape[1] // factors.shape[1]
    by_block = numbers.view(*factors.shape, in_block) * factors.float()[..., None]
    return by_block.view(numbers.shape)


def _stored(plain: Tensor, at: Section, dtype: torch.dtype) -> Tensor:
    return plain[:, at.start : at.end].view(dtype)


def _whole(plain: Tensor, at: Section, bits: int) -> Tensor:
    """Whole numbers of `bits` bits: uint8 [rows, numbers]."""
    numbers: Tensor | None = None
    for low, width, start, end in _planes(at, bits):
        plane, mask = plain[:, start:end], (1 << width) - 1
        parts = torch.stack([plane >> shift & mask for shift in range(0, 8, width)], 2)
        parts = parts.flatten(1)[:, : at.numbers]
        numbers = parts if numbers is None else numbers | parts << low
    assert numbers is not None
    return numbers.contiguous()


def _put_whole(plain: Tensor, at: Section, bits: int, numbers: Tensor) -> None:
    # In numpy, which wakes no other threads for it.
    rows, given = plain.numpy(), np.ascontiguousarray(numbers.numpy())
    for low, width, start, end in _planes(at, bits):
        part: NDArray[np.uint8] = given
        if width < bits:
            part = np.bitwise_and(given >> low, (1 << width) - 1)
        rows[:, start:end] = _in_bytes(part, width)


def _in_bytes(numbers: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Numbers of `width` bits, 8 / width in a byte, the first in its low bits."""
    if width == 8:
        return numbers
    if width == 1:
        return np.packbits(numbers, axis=1, bitorder="little")
    if missing := -numbers.shape[1] % (8 // width):
        numbers = np.pad(numbers, ((0, 0), (0, missing)))
    if width == 4:
        two = numbers.view(np.uint16)
        return (two | two >> 4).astype(np.uint8)
    four = numbers.view(np.uint32)
    return (four | four >> 6 | four >> 12 | four >> 18).astype(np.uint8)


def _planes(at: Section, bits: int) -> Iterator[tuple[int, int, int, int]]:
    """Of each plane its lowest bit, its width, and its bytes in a row."""
    low, start = 0, at.start
    for width in planes(bits):
        end = start + -(-at.numbers * width // 8)
        yield low, width, start, end
        low, start = low + width, end


def _put(plain: Tensor, at: Section, kind: Scale | Offset, numbers: Tensor | None) -> None:
    if numbers is None:
        assert not at.numbers
    elif isinstance(kind, TwoLevel):
        _put_whole(plain, at, kind.bits, numbers)
    else:
        stored = numbers.to(FLOATS.get(kind, torch.uint8)).contiguous().flatten()
        plain[:, at.start : at.end] = stored.view(torch.uint8).view(len(plain), -1)
