"""Matrices of codes as the native kernels read them: in panels of 16 rows (native/panels.h).

A panel is read from its first byte to its last. It has, for each span of its rows' elements,

    head | for each 32 elements of the span: scales, or none | codes

all of them first of row 0, then of row 1, and so on:

    kind          span     head                               scales            of
    halves        32       float16 scales (| offsets)                           Q4_0, Q5_0, Q8_0,
                                                                                Q4_1, Q5_1
    wholes        a group  float32 scales | zeros, a byte                       2, 4 and 8 bits in
                                                                                groups of 32 n
    levels        a block  float16 factors (| of offsets)     signed bytes of   Q2_K to Q6_K
                                                              each group
                                                              (| offsets)

A scale of `levels` is its byte times its factor. Codes are kept in the planes that `WeightFormat`
has, the low bits first. In a plane of w bits, four codes of a row are a byte each of a 32-bit word;
numbers 0 to 8 / w - 1 of such fours share that word, the first in its low bits. A word of each of
the 16 rows, and then the next words.

What a row is short of a whole 32, and rows that are missing to a whole panel, count for nothing.
"""

from collections.abc import Iterable
from functools import reduce
from typing import Final, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kvrt.spi import Matrix, WeightFormat
from kvrt.spi.matrices import TwoLevel, planes
from kvrt.spi.plain import codes, levels, offsets, scales

ROWS: Final = 16
"""Of a panel."""

CODES: Final = 32
"""Elements that activations' scales are of."""

PACK_ROWS: Final = 4096
"""Rows that are laid out at a time: what that takes besides is a few times their bytes."""


class Packing(NamedTuple):
    """How matrices of a format are laid out.

    Args:
        kind: how scales are kept.
        offsets: whether there are any.
        groups: of 32 elements, 1 or 2.
    """

    kind: Literal["halves", "wholes", "levels"]
    offsets: bool = False
    groups: int = 1


_KERNELS: Final = {
    Packing("halves"): (0, (4, 5, 8)),
    Packing("halves", offsets=True): (1, (4, 5)),
    Packing("wholes"): (2, (2, 4, 8)),
    Packing("levels", offsets=True): (3, (4, 5)),
    Packing("levels", groups=2): (4, (3, 6)),
    Packing("levels", offsets=True, groups=2): (5, (2,)),
}
"""The numbers of `enum class Scales` in native/api.h, and of how many bits codes are with each."""


def packing_of(format: WeightFormat) -> Packing | None:
    """How matrices of a format are laid out; None if there are no products with them."""
    found = _packing_of(format)
    return found if found in _KERNELS and format.bits in _KERNELS[found][1] else None


def _packing_of(format: WeightFormat) -> Packing | None:
    scale, offset = format.scale, format.offset
    if format.table or format.codes != "whole":
        return None
    if isinstance(scale, TwoLevel):
        if format.group not in (16, CODES) or not _is_signed_byte(scale):
            return None
        if isinstance(offset, TwoLevel):
            alike = offset.block == scale.block and _is_signed_byte(offset)
            return Packing("levels", True, CODES // format.group) if alike else None
        return Packing("levels", False, CODES // format.group) if offset == "none" else None
    if format.group == CODES and scale == "float16" and offset in ("none", "float16"):
        halves = Packing("halves", offset == "float16")
        if format.bits in _KERNELS[halves][1]:
            return halves
    if format.group % CODES == 0 and scale in ("float16", "float32"):
        return Packing("wholes") if offset in ("none", "zeros") else None
    return None


def _is_signed_byte(kind: TwoLevel) -> bool:
    """Whether its numbers are, less their zero."""
    return kind.block % CODES == 0 and kind.zero <= 128 and 2**kind.bits - kind.zero <= 128


def packing(matrix: Matrix) -> tuple[int, int, int, int]:
    """`struct Packing` of native/api.h."""
    form = _Form.of(matrix.format, matrix.width)
    number, _ = _KERNELS[form.packing]
    return matrix.format.bits, matrix.format.zero, number, form.span


class _Form(NamedTuple):
    """Sizes of a panel, in bytes where nothing else is said.

    Args:
        packing: of its format.
        span: elements of a row.
        spans: how many.
        blocks: of 32 elements in a span.
        head: of a span.
        scales: of a block.
        codes: of a block.
    """

    packing: Packing
    span: int
    spans: int
    blocks: int
    head: int
    scales: int
    codes: int

    @classmethod
    def of(cls, format: WeightFormat, width: int) -> "_Form":
        packing = packing_of(format)
        assert packing is not None
        kind, with_offsets, groups = packing
        span = CODES
        if isinstance(format.scale, TwoLevel):
            span = format.scale.block
        elif kind == "wholes":
            span = format.group or width
        head = 4 + 1 if kind == "wholes" else 2 + 2 * with_offsets
        numbers = groups * (1 + with_offsets) if kind == "levels" else 0
        blocks, codes = -(-span // CODES), CODES * format.bits // 8
        return cls(packing, span, width // span, blocks, ROWS * head, ROWS * numbers, ROWS * codes)

    @property
    def panel(self) -> int:
        return self.spans * (self.head + self.blocks * (self.scales + self.codes))

    def parts(self, panels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Views of panels [panels, bytes]: heads, scales of blocks, and codes.

        Returns:
            uint8 [panels, spans, head], [panels, spans, blocks, numbers, 16], and
            [panels, spans, blocks, lines, 16, 4].
        """
        sizes, block = (len(panels), self.spans, self.blocks), self.scales + self.codes
        by_span = panels.view(*sizes[:2], self.head + self.blocks * block)
        by_block = by_span[..., self.head :].view(*sizes, block)
        numbers, codes = by_block[..., : self.scales], by_block[..., self.scales :]
        numbers = numbers.view(*sizes, self.scales // ROWS, ROWS)
        codes = codes.view(*sizes, self.codes // (4 * ROWS), ROWS, 4)
        return by_span[..., : self.head], numbers, codes


def nbytes(format: WeightFormat, out: int, width: int) -> int:
    """Bytes of a matrix in panels."""
    return -(-out // ROWS) * _Form.of(format, width).panel


# --- laying out -----------------------------------------------------------------------------------


def pack(format: WeightFormat, plain: Tensor, width: int, into: Tensor) -> Matrix:
    """Lay a matrix out in panels.

    Args:
        plain: uint8 [out, row_bytes]: the plain form of `WeightFormat`.
        width: elements of a row.
        into: uint8 [nbytes], contiguous.
    """
    form = _Form.of(format, width)
    panels = into.view(-1, form.panel)
    for first in range(0, len(plain), PACK_ROWS):
        some = plain[first : first + PACK_ROWS]
        missing = -len(some) % ROWS
        if missing:
            some = torch.cat((some, some.new_zeros(missing, some.shape[1])))
        _lay_out(form, format, some, width, panels[first // ROWS : (first + len(some)) // ROWS])
    return Matrix(format, into, len(plain), width)


def _lay_out(form: _Form, format: WeightFormat, plain: Tensor, width: int, panels: Tensor) -> None:
    head, block = _scales(form, format, plain, width)
    heads, numbers, lines = form.parts(panels)
    stored = [_by_panel(kept, 2).contiguous().view(torch.uint8) for kept in head]
    heads.copy_(torch.cat(stored, dim=2))
    for i, kept in enumerate(block):
        of_blocks = kept.to(torch.int8).view(len(plain), form.spans, form.blocks, -1)
        groups = of_blocks.shape[3]
        numbers[:, :, :, i * groups : (i + 1) * groups] = _by_panel(of_blocks, 4).view(torch.uint8)
    code = F.pad(codes(format, plain, width), (0, -width % CODES))
    fours = code.view(len(plain), form.spans, form.blocks, CODES // 4, 4)
    lines.copy_(_by_panel(_shared(fours, format.bits), 4))


def _by_panel(of_rows: Tensor, rows_at: int) -> Tensor:
    """[rows, ...] as [panels, ...], where the 16 rows of a panel are dimension `rows_at`."""
    return of_rows.view(-1, ROWS, *of_rows.shape[1:]).movedim(1, rows_at)


def _scales(
    form: _Form, format: WeightFormat, plain: Tensor, width: int
) -> tuple[list[Tensor], list[Tensor]]:
    """What heads hold, [rows, spans] each, and the numbers of blocks, [rows, groups] each."""
    if form.packing.kind == "levels":
        at = format.sections(width)
        pairs = [
            levels(kind, plain, numbers, factors)
            for kind, numbers, factors in (
                (format.scale, at.scales, at.scale_factors),
                (format.offset, at.offsets, at.offset_factors),
            )
            if isinstance(kind, TwoLevel)
        ]
        return [factors for _, factors in pairs], [numbers for numbers, _ in pairs]
    scale, offset = scales(format, plain, width), offsets(format, plain, width)
    if form.packing.kind == "halves":
        return [kept.half() for kept in (scale, offset) if kept is not None], []
    zeros = torch.full_like(scale, format.zero) if offset is None else offset
    return [scale, zeros.to(torch.uint8)], []


def _shared(fours: Tensor, bits: int) -> Tensor:
    """Codes [..., 8, 4] in planes, [..., lines, 4]."""
    lines, low = [], 0
    for width in planes(bits):
        plane = fours >> low & ((1 << width) - 1)
        in_byte = 8 // width
        lines.append(_together(plane[..., i::in_byte, :] << i * width for i in range(in_byte)))
        low += width
    return torch.cat(lines, dim=-2)


# --- reading --------------------------------------------------------------------------------------


def rows(matrix: Matrix, indices: Tensor, out: Tensor) -> Tensor:
    """Write rows of a matrix to `out`, float32 [rows, width], exactly."""
    format, width = matrix.format, matrix.width
    form = _Form.of(format, width)
    where = indices.long()
    panels = matrix.data.view(-1, form.panel)[where // ROWS]
    each, lane = torch.arange(len(where)), where % ROWS
    heads, numbers, lines = form.parts(panels)

    def head(start: int, dtype: torch.dtype) -> Tensor:
        """float32 [rows, spans, 1, 1, 1], from `start` on for 16 rows."""
        stored = heads[..., start : start + ROWS * dtype.itemsize].contiguous().view(dtype)
        return stored[each, :, lane].float()[..., None, None, None]

    values = _apart(lines[each, :, :, :, lane], format.bits).float()
    groups = form.packing.groups
    values = values.view(len(where), form.spans, form.blocks, groups, CODES // groups)
    if form.packing.kind == "wholes":
        zero = head(4 * ROWS, torch.uint8)
        scale = head(0, torch.float32)
        return _into(out, (values - zero) * scale)
    scale, offset = head(0, torch.float16), None
    if form.packing.offsets:
        offset = head(2 * ROWS, torch.float16)
    if form.packing.kind == "levels":
        whole = numbers.view(torch.int8)[each, :, :, :, lane].float()[..., None]
        scale = scale * whole[:, :, :, :groups]
        if offset is not None:
            offset = offset * whole[:, :, :, groups:]
    values = (values - format.zero) * scale
    return _into(out, values if offset is None else values + offset)


def _into(out: Tensor, values: Tensor) -> Tensor:
    return out.copy_(values.flatten(1)[:, : out.shape[1]])


def _apart(lines: Tensor, bits: int) -> Tensor:
    """Codes [..., 8, 4] of planes [..., lines, 4]."""
    found, low, first = [], 0, 0
    for width in planes(bits):
        plane, mask = lines[..., first : first + width, :], (1 << width) - 1
        parts = [plane >> shift & mask for shift in range(0, 8, width)]
        found.append(torch.stack(parts, dim=-2).flatten(-3, -2) << low)
        low, first = low + width, first + width
    return _together(found)


def _together(parts: Iterable[Tensor]) -> Tensor:
    return reduce(torch.bitwise_or, parts)
