"""Products with weights that stay codes: formats, how they are laid out, and the calls.

Rows of W are laid out in panels of 16 (native/linear_packed.h). For each 32 elements of a row,
one after the other, a panel has

    16 scales, float16 | 16 offsets, float16, if the format has them | codes

where codes of 8 bits are [8][16 rows][4 of a row], a byte each, and those of 4 bits
[4][16 rows][4], a byte the codes i and i + 4 of eight, the former in its low bits. Rows that are
missing to a whole panel are 0. So a panel is read from its first byte to its last, and is as large
as in a file.
"""

from typing import Final

import torch
from torch import Tensor

from kvrt.errors import ContractError
from kvrt.spi import Activation, Matrices, Matrix, WeightFormat
from kvrt.spi.plain import codes, offsets, scales
from kvrt_kernels._args import address, check_rows, check_vector, need, threads_or_default
from kvrt_kernels._load import native
from kvrt_kernels.linear import GATE_CODE

ROWS: Final = 16
"""Of a panel."""

CODES: Final = 32
"""That share a scale."""

PACK_ROWS: Final = 4096
"""Rows that are laid out at a time: what that takes besides is a few times their bytes."""


def multiplies(format: WeightFormat) -> bool:
    """Whether there are products: for whole codes of 4 or 8 bits, a float16 scale for each 32."""
    return (
        format.bits in (4, 8)
        and format.group == CODES
        and format.scale == "float16"
        and format.offset in ("none", "float16")
        and not format.table
        and format.codes == "whole"
    )


def nbytes(format: WeightFormat, out: int, width: int) -> int:
    """Bytes of a matrix in panels."""
    return -(-out // ROWS) * (width // CODES) * _block_bytes(format)


def pack(format: WeightFormat, plain: Tensor, width: int, into: Tensor) -> Matrix:
    """Lay a matrix out in panels.

    Args:
        plain: uint8 [out, row_bytes]: the plain form of `WeightFormat`.
        width: elements of a row, a multiple of 32.
        into: uint8 [nbytes], contiguous.
    """
    panels = _panels(format, into, width)
    for first in range(0, len(plain), PACK_ROWS):
        some = plain[first : first + PACK_ROWS]
        missing = -len(some) % ROWS
        if missing:
            some = torch.cat((some, some.new_zeros(missing, some.shape[1])))
        _lay_out(format, some, width, panels[first // ROWS : (first + len(some)) // ROWS])
    return Matrix(format, into, len(plain), width)


def rows(matrix: Matrix, indices: Tensor, out: Tensor) -> Tensor:
    """Write rows of a matrix to `out`, float32 [rows, width], exactly."""
    format, width = matrix.format, matrix.width
    where = indices.long()
    blocks = _panels(format, matrix.data, width)[where // ROWS]
    lane = (where % ROWS)[:, None]
    each = torch.arange(len(where))[:, None]
    groups = torch.arange(width // CODES)
    head = blocks[:, :, : _head(format)].contiguous().view(torch.float16)
    scale = head[each, groups, lane].float()
    body = blocks[:, :, _head(format) :].reshape(*blocks.shape[:2], format.bits, ROWS, 4)
    code = body[each, groups, :, lane]
    if format.bits == 4:
        code = torch.stack((code & 15, code >> 4), 3)
    values = code.flatten(2).float()
    if format.zero:
        values -= format.zero
    values *= scale[..., None]
    if format.offset == "float16":
        values += head[each, groups, lane + ROWS].float()[..., None]
    return out.copy_(values.flatten(1))


def _head(format: WeightFormat) -> int:
    """Bytes of a block's scales and offsets."""
    return 2 * ROWS * (1 + (format.offset == "float16"))


def _block_bytes(format: WeightFormat) -> int:
    return _head(format) + ROWS * CODES * format.bits // 8


def _panels(format: WeightFormat, data: Tensor, width: int) -> Tensor:
    """[panels, blocks of a row, bytes]."""
    return data.view(-1, width // CODES, _block_bytes(format))


def _lay_out(format: WeightFormat, plain: Tensor, width: int, panels: Tensor) -> None:
    def by_panel(numbers: Tensor) -> Tensor:
        """[rows, blocks, ...] as [panels, blocks, rows, ...]."""
        return numbers.reshape(-1, ROWS, *numbers.shape[1:]).transpose(1, 2)

    head = [scales(format, plain, width), offsets(format, plain, width)]
    for at, numbers in enumerate(given for given in head if given is not None):
        stored = by_panel(numbers.half()).contiguous().view(torch.uint8)
        panels[:, :, 2 * ROWS * at : 2 * ROWS * (at + 1)] = stored
    fours = codes(format, plain, width).view(len(plain), -1, CODES // 4, 4)
    if format.bits == 4:
        fours = fours[:, :, 0::2] | fours[:, :, 1::2] << 4
    body = by_panel(fours).transpose(2, 3)
    panels[:, :, _head(format) :] = body.flatten(2)


def linear(
    x: Tensor,
    weight: Matrices,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    threads: int | None = None,
) -> Tensor:
    """``x @ weight.T (+ bias) (+ residual)``; see `kvrt.spi.PackedMatrices`.

    Raises:
        ContractError: a tensor has another shape or dtype.
    """
    total = sum(matrix.out for matrix in weight)
    _check(x, weight)
    check_vector("bias", bias, total)
    y = torch.empty(x.shape[0], total) if out is None else out
    first = 0
    for matrix in weight:
        last = first + matrix.out
        _run(
            x,
            matrix,
            None,
            0,
            matrix.out,
            None if bias is None else bias[first:last],
            None if residual is None else residual[:, first:last],
            y[:, first:last],
            threads,
        )
        first = last
    return y


def gated_linear(
    x: Tensor,
    weight: Matrices,
    activation: Activation,
    bias: Tensor | None = None,
    out: Tensor | None = None,
    threads: int | None = None,
) -> Tensor:
    """``act(x @ gate.T) * (x @ up.T)``, likewise.

    Raises:
        ContractError: a tensor has another shape or dtype.
    """
    total = sum(matrix.out for matrix in weight)
    _check(x, weight)
    check_vector("bias", bias, total)
    need(len(weight) < 3 and total % 2 == 0, f"gate and up are {len(weight)} matrices of {total}")
    y = torch.empty(x.shape[0], total // 2) if out is None else out
    up = weight[1] if len(weight) == 2 else None
    _run(x, weight[0], up, GATE_CODE[activation], total // 2, bias, None, y, threads)
    return y


def _check(x: Tensor, weight: Matrices) -> None:
    for matrix in weight:
        if not multiplies(matrix.format):
            raise ContractError(f"there are no products with {matrix.format.name}")
        check_rows("x", x, matrix.width)


def _packing(matrix: Matrix | None) -> tuple[int, int, int]:
    """`struct Packing` of native/api.h."""
    if matrix is None:
        return 0, 0, 0
    format = matrix.format
    return format.bits, format.zero, int(format.offset != "none")


def _run(
    x: Tensor,
    matrix: Matrix,
    up: Matrix | None,
    gate: int,
    out_features: int,
    bias: Tensor | None,
    residual: Tensor | None,
    y: Tensor,
    threads: int | None,
) -> None:
    native().packed_linear(
        _packing(matrix),
        _packing(up),
        gate,
        address(x),
        x.stride(0),
        matrix.data.data_ptr(),
        0 if up is None else up.data.data_ptr(),
        address(bias),
        address(residual),
        0 if residual is None else residual.stride(0),
        address(y),
        y.stride(0),
        x.shape[0],
        out_features,
        matrix.width,
        threads_or_default(threads),
    )
