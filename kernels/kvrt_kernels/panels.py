"""Matrices of codes as the native kernels read them: in panels of 16 rows (native/panels.h).

A panel is read from its first byte to its last. It has, for each span of its rows' elements,

    head | for each 32 elements of the span: scales, or none | codes

all of them first of row 0, then of row 1, and so on:

    kind          span     head                               scales            of
    halves        32       float16 scales (| offsets)                           Q4_0, Q5_0, Q8_0,
                                                                                Q4_1, Q5_1, IQ4_NL,
                                                                                NVFP4
    wholes        a group  float32 scales | zeros, a byte                       2, 4 and 8 bits in
                                                                                groups of 32 n,
                                                                                MXFP4, FP8
    levels        a block  float16 factors (| of offsets)     signed bytes of   Q2_K to Q6_K,
                                                              each group        IQ4_XS
                                                              (| offsets)

A scale of `levels` is its byte times its factor. Codes are kept in the planes that `WeightFormat`
has, the low bits first. In a plane of w bits, four codes of a row are a byte each of a 32-bit word;
numbers 0 to 8 / w - 1 of such fours share that word, the first in its low bits. A word of each of
the 16 rows, and then the next words.

What a row is short of a whole 32, and rows that are missing to a whole panel, count for nothing.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from typing import Final, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvrt.spi import Matrix, WeightFormat
from kvrt.spi.matrices import TwoLevel, planes
from kvrt.spi.plain import levels, offsets, scales
from kvrt_kernels._args import threads_or_default

ROWS: Final = 16
"""Of a panel."""

CODES: Final = 32
"""Elements that activations' scales are of."""

AT_ONCE: Final = 1 << 18
"""Elements, about, that a thread lays out at a time. They stay in a processor's caches, and are so
few that torch wakes no other threads for them."""

Words = NDArray[np.uint32]


class Packing(NamedTuple):
    """How matrices of a format are laid out.

    Args:
        kind: how scales are kept.
        offsets: whether there are any.
        groups: of 32 elements, 1 or 2.
        codes: what codes are; the tables are those that `_TABLES` names.
    """

    kind: Literal["halves", "wholes", "levels"]
    offsets: bool = False
    groups: int = 1
    codes: Literal["whole", "iq4", "e2m1", "e4m3"] = "whole"


class _Kernel(NamedTuple):
    """Of what scales there are products, by `enum class Scales` in native/api.h.

    Args:
        scales: the number there.
        bits: of whole codes.
        others: other codes than whole ones.
    """

    scales: int
    bits: tuple[int, ...] = ()
    others: tuple[str, ...] = ()


_KERNELS: Final = {
    Packing("halves"): _Kernel(0, (4, 5, 8), ("iq4",)),
    Packing("halves", offsets=True): _Kernel(1, (4, 5)),
    Packing("halves", groups=2): _Kernel(2, (), ("e2m1",)),
    Packing("wholes"): _Kernel(3, (2, 4, 8), ("e2m1", "e4m3")),
    Packing("levels"): _Kernel(4, (), ("iq4",)),
    Packing("levels", offsets=True): _Kernel(5, (4, 5)),
    Packing("levels", groups=2): _Kernel(6, (3, 6)),
    Packing("levels", offsets=True, groups=2): _Kernel(7, (2,)),
}
_TABLES: Final[dict[tuple[int, ...], Literal["iq4", "e2m1"]]] = {
    (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113): "iq4",
    (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12): "e2m1",
}
_CODES: Final = {"whole": 0, "iq4": 1, "e2m1": 1, "e4m3": 2}
"""The numbers of `enum class Codes`."""
_TABLE_ZERO: Final = 128
"""What the numbers of tables have in addition there."""


def packing_of(format: WeightFormat) -> Packing | None:
    """How matrices of a format are laid out; None if there are no products with them."""
    codes: Literal["whole", "iq4", "e2m1", "e4m3"] = format.codes
    if format.table:
        if format.table not in _TABLES:
            return None
        codes = _TABLES[format.table]
    for packing in _packings(format):
        kernel = _KERNELS.get(packing, _Kernel(0))
        if codes in kernel.others or (codes == "whole" and format.bits in kernel.bits):
            return packing._replace(codes=codes)
    return None


def _packings(format: WeightFormat) -> Iterator[Packing]:
    """What holds the scales of a format without loss."""
    scale, offset = format.scale, format.offset
    groups = {16: 2, CODES: 1}.get(format.group, 0)
    if isinstance(scale, TwoLevel):
        fit = groups > 0 and _is_signed_byte(scale)
        if fit and offset == "none":
            yield Packing("levels", groups=groups)
        if fit and isinstance(offset, TwoLevel):
            fit = offset.block == scale.block and _is_signed_byte(offset)
            if fit:
                yield Packing("levels", offsets=True, groups=groups)
        return
    if groups > 0 and scale in ("float16", "e4m3") and offset in ("none", "float16"):
        yield Packing("halves", offset == "float16", groups)
    if format.group % CODES == 0 and offset in ("none", "zeros"):
        yield Packing("wholes")


def _is_signed_byte(kind: TwoLevel) -> bool:
    """Whether its numbers are, less their zero."""
    return kind.block % CODES == 0 and kind.zero <= 128 and 2**kind.bits - kind.zero <= 128


def packing(matrix: Matrix) -> tuple[int, int, int, int, int]:
    """`struct Packing` of native/api.h."""
    form = _Form.of(matrix.format, matrix.width)
    scales = _KERNELS[form.packing._replace(codes="whole")].scales
    codes = _CODES[form.packing.codes]
    return matrix.format.bits, _zero(matrix.format), scales, form.span, codes


def _zero(format: WeightFormat) -> int:
    """What is subtracted from numbers, once they are looked up."""
    return _TABLE_ZERO if format.table else format.zero


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
        kind, with_offsets, groups, _ = packing
        span = CODES
        if isinstance(format.scale, TwoLevel):
            span = format.scale.block
        elif kind == "wholes":
            span = format.group or width
        head = {"halves": 2 * groups, "wholes": 4 + 1, "levels": 2}[kind] * (1 + with_offsets)
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


def pack(
    format: WeightFormat, plain: Tensor, width: int, into: Tensor, threads: int | None = None
) -> Matrix:
    """Lay a matrix out in panels.

    Args:
        plain: uint8 [out, row_bytes]: the plain form of `WeightFormat`.
        width: elements of a row.
        into: uint8 [nbytes], contiguous.
    """
    form = _Form.of(format, width)
    panels = into.view(-1, form.panel)
    step = max(1, AT_ONCE // (ROWS * width))

    def lay_out(first: int) -> None:
        some = plain[first * ROWS : (first + step) * ROWS]
        missing = -len(some) % ROWS
        if missing:
            some = torch.cat((some, some.new_zeros(missing, some.shape[1])))
        _lay_out(form, format, some, width, panels[first : first + step])

    with ThreadPoolExecutor(threads_or_default(threads)) as pool:
        for _ in pool.map(lay_out, range(0, len(panels), step)):
            pass
    return Matrix(format, into, len(plain), width)


# Written through numpy: torch would not let other threads change a tensor of inference mode.
def _lay_out(form: _Form, format: WeightFormat, plain: Tensor, width: int, panels: Tensor) -> None:
    head, block = _scales(form, format, plain, width)
    heads, numbers, lines = form.parts(panels)
    stored = [_by_panel(kept, 2).contiguous().view(torch.uint8) for kept in head]
    heads.numpy()[:] = torch.cat(stored, dim=2).numpy()
    for i, kept in enumerate(block):
        of_blocks = kept.to(torch.int8).view(len(plain), form.spans, form.blocks, -1)
        groups = of_blocks.shape[3]
        put = numbers.numpy()[:, :, :, i * groups : (i + 1) * groups]
        put[:] = _by_panel(of_blocks, 4).view(torch.uint8).numpy()
    words, first = lines.numpy().view(np.uint32)[..., 0], 0
    for plane, bits in _planes(format, plain, width):
        ordered = _ordered(plane, bits).reshape(-1, ROWS, form.spans, form.blocks, bits)
        words[:, :, :, first : first + bits] = ordered.transpose(0, 2, 3, 4, 1)
        first += bits


def _by_panel(of_rows: Tensor, rows_at: int) -> Tensor:
    """[rows, ...] as [panels, ...], where the 16 rows of a panel are dimension `rows_at`."""
    return of_rows.view(-1, ROWS, *of_rows.shape[1:]).movedim(1, rows_at)


def _planes(format: WeightFormat, plain: Tensor, width: int) -> Iterator[tuple[Words, int]]:
    """The planes of the codes, uint32 [rows, words], filled up to 32 codes; and their bits."""
    start = format.sections(width).codes.start
    for bits in planes(format.bits):
        end = start + -(-width * bits // 8)
        plane = plain.numpy()[:, start:end]
        if missing := -(end - start) % (CODES * bits // 8):
            plane = np.pad(plane, ((0, 0), (0, missing)))
        yield plane.view(np.uint32), bits
        start = end


SWAPS: Final = {
    8: (),
    4: ((0, 2), (1, 2)),
    2: ((0, 2), (1, 3)),
    1: ((0, 2), (1, 4), (1, 3), (2, 3)),
}
"""How a plane's words come to have number k in byte k % 4, k // 4 numbers above its lowest.

Where in a word a number is, counted in numbers, is itself a number of 2 to 5 bits. Of these, two at
a time are exchanged, for all numbers at once."""


def _ordered(words: Words, bits: int) -> Words:
    for low, high in SWAPS[bits]:
        numbers = range(32 // bits)
        up = [n for n in numbers if n >> low & 1 and not n >> high & 1]  # these go up
        mask = np.uint32(sum(((1 << bits) - 1) << n * bits for n in up))
        shift = np.uint32(((1 << high) - (1 << low)) * bits)
        changed = (words >> shift ^ words) & mask
        words = words ^ changed ^ changed << shift
    return words


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
        groups = form.packing.groups
        halves = [kept.half() for kept in (scale, offset) if kept is not None]
        return [kept[:, group::groups] for kept in halves for group in range(groups)], []
    zeros = torch.full_like(scale, _zero(format)) if offset is None else offset
    return [scale, zeros.to(torch.uint8)], []


# --- reading --------------------------------------------------------------------------------------


def rows(matrix: Matrix, indices: Tensor, out: Tensor) -> Tensor:
    """Write rows of a matrix to `out`, float32 [rows, width], exactly."""
    format, width = matrix.format, matrix.width
    form = _Form.of(format, width)
    panel, lane = divmod(indices.numpy(), ROWS)
    heads, numbers, lines = form.parts(matrix.data.view(-1, form.panel))
    groups = form.packing.groups

    def head(place: int, dtype: torch.dtype = torch.float16, count: int = 1) -> Tensor:
        """float32 [rows, spans, 1, count, 1]: from that place of 16 numbers on."""
        start = place * ROWS * dtype.itemsize
        stored = heads[..., start : start + count * ROWS * dtype.itemsize].view(dtype)
        stored = stored.view(len(heads), form.spans, count, ROWS, 1)
        return picked(stored).float()[:, :, None]

    def picked(stored: Tensor) -> Tensor:
        """Each row's own of [panels, ..., 16, _]. By numpy: torch would wake threads of its own."""
        return torch.from_numpy(stored.numpy()[(panel, ..., lane, slice(None))])

    values = _numbers(format, _apart(picked(lines), format.bits))
    values = values.view(len(panel), form.spans, form.blocks, groups, CODES // groups)
    offset: Tensor | None = None
    if form.packing.kind == "wholes":
        scale = head(0, torch.float32)
        values -= 0 if format.table else head(4, torch.uint8)
    elif form.packing.kind == "halves":
        scale = head(0, count=groups)
        if form.packing.offsets:
            offset = head(groups, count=groups)
        values -= format.zero
    else:
        whole = picked(numbers.view(torch.int8)[..., None]).float()
        scale = head(0) * whole[:, :, :, :groups]
        if form.packing.offsets:
            offset = head(1) * whole[:, :, :, groups:]
        values -= format.zero
    values *= scale
    return _into(out, values if offset is None else values + offset)


def _numbers(format: WeightFormat, codes: Tensor) -> Tensor:
    if format.table:
        return torch.tensor(format.table, dtype=torch.float32)[codes.int()]
    return codes.view(torch.float8_e4m3fn).float() if format.codes == "e4m3" else codes.float()


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
