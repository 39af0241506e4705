"""Formats of weights: matrices kept as small codes, and where in a row each byte of them is."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

ROW_ALIGNMENT = 4
"""Bytes that each array of a row begins at a multiple of."""


@dataclass(frozen=True, slots=True)
class TwoLevel:
    """Numbers of a row's groups as whole numbers n, times a float16 that several groups share.

        number of a group = float32(factor of its block) * (n - zero)

    Args:
        bits: of an n, at most 8.
        zero: subtracted from n.
        block: elements of a row that share a factor, a multiple of the group.
    """

    bits: int
    zero: int = 0
    block: int = 256


Scale = Literal["float32", "float16", "e8m0", "e4m3"] | TwoLevel
Offset = Literal["none", "zeros", "float16"] | TwoLevel


class Section(NamedTuple):
    """An array in a row: `numbers` of them, from byte `start` to before byte `end`."""

    start: int
    end: int
    numbers: int


class RowSections(NamedTuple):
    """Where the arrays of a row are, in their order; one that a format has not is empty.

    Args:
        codes: of the elements.
        scales: of the groups.
        scale_factors: of the blocks, where scales are `TwoLevel`.
        offsets: of the groups.
        offset_factors: of the blocks, where offsets are `TwoLevel`.
    """

    codes: Section
    scales: Section
    scale_factors: Section
    offsets: Section
    offset_factors: Section


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How the rows of a matrix are kept as codes with a scale for several of them.

    `group` elements of a row, one after the other, share a scale and, if there are any, an offset.
    Element i has the value, in float32 arithmetic with each operation rounded to nearest even:

        scale * (code - zero)                 offset "none"
        scale * (code - zeros)                offset "zeros", whole numbers; `zero` is 0
        scale * code + offset                 offset "float16" or `TwoLevel`; `zero` is 0
        scale * table[code]                   with a table; the offset is "none", `zero` is 0

    where scale, zeros and offset are those of its group, i // group.

    **Plain form.** A row is kept by itself, so that rows can be stacked, cut and put in another
    order as bytes: uint8 [out, row_bytes]. It consists of five arrays, each from a multiple of 4
    bytes on, what is left before the next being 0:

        codes | scales | factors of the scales | offsets | factors of the offsets

    codes: whole numbers of `bits` bits, from 0 on. With `codes` "e4m3", numbers of E4M3 instead
    (torch's ``float8_e4m3fn``), a byte each.

    scales: one for each group, in order. "float32", "float16": these numbers, little-endian.
    "e8m0": a byte n that means 2^(n - 128). "e4m3": a byte of E4M3 that means half its number.
    (Formats of 4-bit floating-point codes have such scales. Their tables hold twice the numbers, so
    that these are whole.) `TwoLevel`: whole numbers of its `bits`, and then the float16 factors of
    the blocks, in order.

    offsets: likewise; "zeros": a byte each.

    Whole numbers of b bits are kept in planes: b is the sum of one or more of 8, 4, 2 and 1, and
    the largest of these has the lowest bits. So 6 bits are a plane of the low 4 of all numbers, and
    behind it one of the high 2. In a plane of w bits, number i is in byte ``i * w // 8`` from bit
    ``i * w % 8`` on; the last byte is filled up with 0.

    Args:
        name: what people call it.
        bits: of a code, at most 8.
        group: elements of a row that share a scale; 0: all of them. Divides a row.
        scale: how scales are kept.
        zero: subtracted from each code.
        offset: how offsets are kept.
        table: from -128 to 127, 2^bits of them, or none.
        codes: what a code is.
    """

    name: str
    bits: int
    group: int
    scale: Scale
    zero: int = 0
    offset: Offset = "none"
    table: tuple[int, ...] = ()
    codes: Literal["whole", "e4m3"] = "whole"

    def fits(self, width: int) -> bool:
        """Whether a row of `width` elements consists of whole groups, and of whole blocks."""
        two = [kind.block for kind in (self.scale, self.offset) if isinstance(kind, TwoLevel)]
        return width > 0 and all(width % size == 0 for size in (self.group or width, *two))

    def sections(self, width: int) -> RowSections:
        """Where the arrays of a row of `width` elements are."""
        return _sections(self, width)

    def row_bytes(self, width: int) -> int:
        """Bytes of a row of `width` elements in the plain form."""
        return _aligned(self.sections(width).offset_factors.end)


@functools.cache
def _sections(format: WeightFormat, width: int) -> RowSections:
    groups = width // (format.group or width)
    at = 0
    sections = []
    for numbers, nbytes in (
        (width, plane_bytes(format.bits, width)),
        *_arrays(format.scale, groups, width),
        *_arrays(format.offset, groups, width),
    ):
        at = _aligned(at)
        sections.append(Section(at, at + nbytes, numbers))
        at += nbytes
    return RowSections(*sections)


def _arrays(kind: Scale | Offset, groups: int, width: int) -> Iterator[tuple[int, int]]:
    """Numbers and bytes of the scales or offsets of a row, and of their factors."""
    if isinstance(kind, TwoLevel):
        blocks = width // kind.block
        yield groups, plane_bytes(kind.bits, groups)
        yield blocks, 2 * blocks
        return
    item = {"none": 0, "zeros": 1, "e8m0": 1, "e4m3": 1, "float16": 2, "float32": 4}[kind]
    yield (groups if item else 0), item * groups
    yield 0, 0


def planes(bits: int) -> list[int]:
    """The widths of the planes that numbers of so many bits are kept in, in their order."""
    return [width for width in (8, 4, 2, 1) if bits & width]


def plane_bytes(bits: int, numbers: int) -> int:
    """Bytes of so many whole numbers of `bits` bits."""
    return sum(-(-numbers * width // 8) for width in planes(bits))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ROW_ALIGNMENT) * ROW_ALIGNMENT


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """A matrix of weights, as `PackedMatrices.pack` has laid it out for its own products.

    Args:
        format: of its codes.
        data: uint8 [bytes], contiguous, on the device; the device's own arrangement.
        out: rows, the features that come out.
        width: elements of a row, the features that go in.
    """

    format: WeightFormat
    data: "Tensor"
    out: int
    width: int


Matrices = tuple[Matrix, ...]
"""Matrices of equal width, stacked by rows: parts of one weight may differ in their formats."""
