"""Products with weights that stay codes: `TritonMatrices` is a `kvrt.spi.PackedMatrices`."""

from collections.abc import Iterator
from typing import Any, Final

import torch
import triton
from torch import Tensor

from kvrt.spi import Activation, Matrices, Matrix, Rounding, WeightFormat
from kvrt_kernels.triton import packing
from kvrt_kernels.triton.attention import ACTIVATIONS
from kvrt_kernels.triton.configs import config, options
from kvrt_kernels.triton.gate import gated
from kvrt_kernels.triton.product import add_spans_kernel, product_kernel, rows_kernel

SPAN: Final = 1024
"""Elements of a row whose products are added before others are: whole steps of every format."""

FEW: Final = 16
"""Tokens, at most, of a step that has a program for each span of a row."""

ADDED: Final = 512
"""Features of one program that adds spans."""

ROW_STEPS: Final = 8
"""Steps of one program that reads a row."""


class TritonMatrices:
    """See `kvrt.spi.PackedMatrices`. Activations are multiplied as they are.

    The calls check nothing; `kvrt.wrappers.Checked` has.

    Args:
        arch: as its driver names it.
    """

    def __init__(self, arch: str) -> None:
        self.config = config(arch)

    def multiplies(self, format: WeightFormat) -> bool:
        return packing.multiplies(format)

    def rounds(self, format: WeightFormat) -> Rounding:
        return "none"

    def nbytes(self, format: WeightFormat, out: int, width: int) -> int:
        return packing.nbytes(format, out, width)

    def pack(self, format: WeightFormat, plain: Tensor, width: int, into: Tensor) -> Matrix:
        packing.pack(format, plain, width, into)
        return Matrix(format, into, len(plain), width)

    def rows(self, matrix: Matrix, indices: Tensor, out: Tensor) -> Tensor:
        if len(indices):
            arguments = of_matrix(matrix)
            steps = triton.cdiv(arguments["steps"], ROW_STEPS)
            rows_kernel[(len(indices), steps)](
                indices=indices,
                out=out,
                **arguments,
                STEPS=ROW_STEPS,
                # A scaled code is rounded before its offset is added.
                **options(warps=1) | {"enable_fp_fusion": False},
            )
        return out

    def linear(
        self,
        x: Tensor,
        weight: Matrices,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        tokens, features = len(x), sum(matrix.out for matrix in weight)
        y = x.new_empty(tokens, features) if out is None else out
        if not tokens:
            return y
        spans = triton.cdiv(weight[0].width, SPAN)
        if tokens > FEW or spans == 1:
            for matrix, columns in _columns(weight):
                self._product(
                    x, matrix, y[:, columns],
                    None if bias is None else bias[columns],
                    None if residual is None else residual[:, columns],
                )  # fmt: skip
            return y
        parts = torch.empty(spans, tokens, features, dtype=torch.float32, device=x.device)
        for matrix, columns in _columns(weight):
            self._product(x, matrix, parts[..., columns])
        add_spans_kernel[(tokens, triton.cdiv(features, ADDED))](
            parts,
            bias,
            residual,
            y,
            0 if residual is None else residual.stride(0),
            y.stride(0),
            tokens,
            features,
            spans,
            BLOCK=ADDED,
            BIASED=bias is not None,
            ADDED=residual is not None,
            **options(warps=4),
        )
        return y

    def gated_linear(
        self,
        x: Tensor,
        weight: Matrices,
        activation: Activation,
        bias: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        # The bias is added before a product is rounded: what they leave may be small, and the other
        # factor large.
        return gated(self.linear(x, weight, bias), activation, None, out)

    def _product(
        self,
        x: Tensor,
        matrix: Matrix,
        out: Tensor,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> None:
        """To `out`, [tokens, features], or [spans, tokens, features] for a program for each."""
        arguments = of_matrix(matrix)
        split = out.dim() == 3
        tokens = len(x)
        tile = self.config.products[x.element_size() * 8, tokens > FEW]
        grid = (
            triton.cdiv(matrix.out, tile.block_n),
            triton.cdiv(tokens, tile.block_m),
            len(out) if split else 1,
        )
        product_kernel[grid](
            x=x,
            bias=bias,
            residual=residual,
            out=out,
            x_stride=x.stride(0),
            residual_stride=0 if residual is None else residual.stride(0),
            out_stride=out.stride(-2),
            part_stride=out.stride(0) if split else 0,
            tokens=tokens,
            features=matrix.out,
            **arguments,
            DOT=ACTIVATIONS[x.dtype],
            BLOCK_N=tile.block_n,
            BLOCK_M=tile.block_m,
            SPAN=SPAN,
            SPLIT=split,
            EVEN=matrix.width % arguments["HOW"].elements == 0,
            BIASED=bias is not None,
            ADDED=residual is not None,
            **tile.options,
        )


def _columns(weight: Matrices) -> Iterator[tuple[Matrix, slice]]:
    """The matrices, and which features of a result are theirs."""
    end = 0
    for matrix in weight:
        yield matrix, slice(end, end := end + matrix.out)


def of_matrix(matrix: Matrix) -> dict[str, Any]:
    """What every kernel takes of a matrix."""
    how = packing.packing_of(matrix.format)
    scales, factors, offsets, offset_factors, row = how.places(matrix.width)
    return {
        "data": matrix.data,
        "table": matrix.data[matrix.out * row :].view(torch.int8) if how.table else None,
        "width": matrix.width,
        "plane": how.padded(matrix.width) // 8,
        "steps": -(-matrix.width // how.elements),
        "scales_at": scales,
        "factors_at": factors,
        "offsets_at": offsets,
        "offset_factors_at": offset_factors,
        "row_bytes": row,
        "HOW": how,
    }
