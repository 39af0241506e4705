"""How these kernels keep packed weights: the plain form's numbers, each where a program reads it.

A row is kept by itself, from a multiple of 16 bytes on, in five arrays as in the plain form
(`kvrt.spi.WeightFormat`), each from a multiple of 16 bytes on:

    codes | scales | factors of the scales | offsets | factors of the offsets

Codes are in planes of 8, 4, 2 or 1 bits. A piece is 32 elements of a row, one after the other, or
16 where groups have no more. In a plane, as many bytes hold the pieces that come next, the first
in the lowest bits:

    byte         0         1    ...    31                            a plane of 4 bits
    low bits     k_0       k_1         k_31        a piece
    high bits    k_32      k_33        k_63        the next

So a piece is read as whole words, and comes apart by one shift and one mask. All else is a number
each: a whole number of a scale takes a byte, and 8-bit floats are kept in 16 bits. A row is filled
up with 0 to whole bytes of every plane.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

import torch
from torch import Tensor
from torch.nn import functional

from kvrt.spi import WeightFormat
from kvrt.spi.matrices import TwoLevel, planes
from kvrt.spi.plain import codes, levels, offsets, scales

ALIGNMENT: Final = 16
"""Bytes that rows and their arrays begin at a multiple of: what a thread reads at once."""

TABLE_BYTES: Final = 256
"""Of the table of a format that has one, behind the rows."""

STEP: Final = 64
"""Elements, at least, that a program reads at a time."""

LONGEST_RUN: Final = 4
"""Pieces, at most, that are multiplied before what comes out is, by the scale that they share."""

AT_ONCE: Final = 1 << 22
"""Elements that are laid out at a time: what that takes besides is a few times their bytes."""

Numbers = Literal["none", "float32", "float16", "bfloat16", "zeros", "two"]

DTYPES: Final = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "zeros": torch.uint8,
}


@dataclass(frozen=True, slots=True)
class Kept:
    """Numbers of groups: how they are kept, and what they mean.

    Args:
        numbers: which; "two": a byte and a float16 factor, see `TwoLevel`; "zeros": a byte.
        zero: subtracted from the byte.
        block: elements of a row that share a factor.
    """

    numbers: Numbers
    zero: int = 0
    block: int = 1

    @property
    def nbytes(self) -> int:
        return {"none": 0, "float32": 4, "zeros": 1, "two": 1}.get(self.numbers, 2)


@dataclass(frozen=True, slots=True)
class Packing:
    """A format, as kernels are compiled for it.

    Args:
        bits: of a code.
        piece: elements that lie side by side, 16 or 32.
        run: pieces, one after the other, that share a scale.
        step: pieces that are read at a time; whole runs.
        group: elements that share a scale; 0: the whole row.
        zero: subtracted from each code.
        scale: of a group.
        offset: of a group.
        table: code i stands for number i of a table.
        e4m3: codes are numbers of E4M3.
    """

    bits: int
    piece: int
    run: int
    step: int
    group: int
    zero: int
    scale: Kept
    offset: Kept
    table: bool
    e4m3: bool

    @property
    def elements(self) -> int:
        """Of a step."""
        return self.step * self.piece

    def padded(self, width: int) -> int:
        """Elements that there is room for in a row of `width`: whole bytes of every plane."""
        whole = self.piece * max(self.step, *(8 // plane for plane in planes(self.bits)))
        return -(-width // whole) * whole

    def places(self, width: int) -> tuple[int, ...]:
        """Where the arrays behind a row's codes begin, and its bytes."""
        padded = self.padded(width)
        at = padded * self.bits // 8
        places = []
        for kept in (self.scale, self.offset):
            groups = -(-padded // self.group) if self.group else 1
            factors = -(-padded // kept.block) if kept.numbers == "two" else 0
            for nbytes in (kept.nbytes * groups, 2 * factors):
                at = -(-at // ALIGNMENT) * ALIGNMENT
                places.append(at)
                at += nbytes
        return *places, -(-at // ALIGNMENT) * ALIGNMENT


def multiplies(format: WeightFormat) -> bool:
    """Whether there are kernels: for groups of whole pieces."""
    return format.group % 16 == 0


@cache
def packing_of(format: WeightFormat) -> Packing:
    """How a format that there are kernels for is kept."""
    piece = 16 if format.group % 32 else 32
    run = LONGEST_RUN
    while format.group % (run * piece):
        run //= 2
    return Packing(
        bits=format.bits,
        piece=piece,
        run=run,
        step=max(run, STEP // piece),
        group=format.group,
        zero=format.zero,
        scale=_kept(format.scale),
        offset=_kept(format.offset),
        table=bool(format.table),
        e4m3=format.codes == "e4m3",
    )


def _kept(kind: str | TwoLevel) -> Kept:
    if isinstance(kind, TwoLevel):
        return Kept("two", kind.zero, kind.block)
    kinds: dict[str, Numbers] = {
        "none": "none",
        "zeros": "zeros",
        "float16": "float16",
        "float32": "float32",
        "e8m0": "bfloat16",
        "e4m3": "float16",
    }
    return Kept(kinds[kind])


def nbytes(format: WeightFormat, out: int, width: int) -> int:
    """Bytes of a matrix."""
    return out * packing_of(format).places(width)[-1] + TABLE_BYTES * bool(format.table)


def pack(format: WeightFormat, plain: Tensor, width: int, into: Tensor) -> None:
    """Lay a matrix out; see `kvrt.spi.PackedMatrices.pack`."""
    packing = packing_of(format)
    places = packing.places(width)
    rows = into[: len(plain) * places[-1]].view(len(plain), places[-1])
    step = max(1, AT_ONCE // width)
    for first in range(0, len(plain), step):
        some = plain[first : first + step]
        rows[first : first + step].copy_(_laid_out(format, packing, some, width))
    if format.table:
        table = torch.zeros(TABLE_BYTES, dtype=torch.int8)
        table[: len(format.table)] = torch.tensor(format.table, dtype=torch.int8)
        into[rows.numel() :].copy_(table.view(torch.uint8))


def _laid_out(format: WeightFormat, packing: Packing, plain: Tensor, width: int) -> Tensor:
    """Rows in the plain form, as they are kept: uint8 [rows, bytes of a row]."""
    *places, row_bytes = packing.places(width)
    rows = torch.zeros(len(plain), row_bytes, dtype=torch.uint8)
    whole = functional.pad(codes(format, plain, width), (0, packing.padded(width) - width))
    at = low = 0
    for bits in planes(format.bits):
        plane = _plane(whole >> low & ((1 << bits) - 1), bits, packing.piece)
        rows[:, at : at + plane.shape[1]] = plane
        at, low = at + plane.shape[1], low + bits
    for begin, numbers in zip(places, _of_groups(format, packing, plain, width), strict=True):
        if numbers is not None:
            kept = numbers.contiguous().view(torch.uint8)
            rows[:, begin : begin + kept.shape[1]] = kept
    return rows


def _plane(numbers: Tensor, bits: int, piece: int) -> Tensor:
    """Numbers of so many bits, uint8 [rows, elements], as a plane: uint8 [rows, bytes]."""
    parts = numbers.view(len(numbers), -1, 8 // bits, piece)
    plane = parts[:, :, 0].clone()
    for i in range(1, 8 // bits):
        plane |= parts[:, :, i] << i * bits
    return plane.flatten(1)


def _of_groups(
    format: WeightFormat, packing: Packing, plain: Tensor, width: int
) -> Iterator[Tensor | None]:
    """Scales, their factors, offsets, and theirs, in their dtypes; None for those there are not."""
    at = format.sections(width)
    for kind, kept, numbers, factors, meant in (
        (format.scale, packing.scale, at.scales, at.scale_factors, scales),
        (format.offset, packing.offset, at.offsets, at.offset_factors, offsets),
    ):
        if isinstance(kind, TwoLevel):
            whole, factor = levels(kind, plain, numbers, factors)
            yield (whole + kind.zero).to(torch.uint8)
            yield factor.half()
        else:
            read = meant(format, plain, width)
            yield None if read is None else read.to(DTYPES[kept.numbers])
            yield None
