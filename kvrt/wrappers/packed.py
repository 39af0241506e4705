"""Checks of the optional `PackedMatrices`."""

from typing import get_args

import torch

from kvrt.spi import Activation, Matrices, Matrix, PackedMatrices, Rounding, WeightFormat
from kvrt.wrappers.dense import (
    check_activation,
    check_halves,
    check_matrix,
    check_product,
    check_x,
)
from kvrt.wrappers.rules import Facts, broken, whole

ALIGNMENT = 128
"""Bytes that the address of a packed matrix is a multiple of."""


class CheckedPackedMatrices:
    """`PackedMatrices` that refuses what its rules do not allow, and wrong answers."""

    def __init__(self, facts: Facts, inner: PackedMatrices) -> None:
        self._facts = facts
        self._inner = inner

    def multiplies(self, format: WeightFormat) -> bool:
        return self._inner.multiplies(format)

    def rounds(self, format: WeightFormat) -> Rounding:
        rounding = self._inner.rounds(format)
        if rounding not in get_args(Rounding):
            rule = f"must be one of {', '.join(get_args(Rounding))}"
            raise self._facts.wrong("rounds()", repr(rounding), rule)
        return rounding

    def nbytes(self, format: WeightFormat, out: int, width: int) -> int:
        self._check_format(format, width)
        nbytes = self._inner.nbytes(format, out, width)
        if not whole(nbytes) or nbytes <= 0:
            raise self._facts.wrong("nbytes()", repr(nbytes), "must be a positive whole number")
        return nbytes

    def pack(
        self, format: WeightFormat, plain: torch.Tensor, width: int, into: torch.Tensor
    ) -> Matrix:
        self._check_format(format, width)
        row = format.row_bytes(width)
        if plain.device.type != "cpu" or plain.dtype != torch.uint8 or plain.shape[1:] != (row,):
            raise broken("plain", plain, f"must be uint8 [out features, {row}] in host memory")
        self._facts.check_on_device("into", into)
        nbytes = self.nbytes(format, len(plain), width)
        if into.dtype != torch.uint8 or into.shape != (nbytes,) or not into.is_contiguous():
            raise broken("into", into, f"must be uint8 [{nbytes}], contiguous")
        if into.data_ptr() % ALIGNMENT:
            rule = f"must begin at a multiple of {ALIGNMENT} bytes"
            raise broken("into", hex(into.data_ptr()), rule)
        matrix = self._inner.pack(format, plain, width, into)
        asked = (format, len(plain), width, into.data_ptr(), nbytes)
        if not isinstance(matrix, Matrix) or asked != (
            matrix.format,
            matrix.out,
            matrix.width,
            matrix.data.data_ptr(),
            matrix.data.numel(),
        ):
            raise self._facts.wrong("pack()", type(matrix).__name__, "must be the matrix in `into`")
        return matrix

    def rows(self, matrix: Matrix, indices: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        self._facts.check_open("a packed product")
        self._facts.check_on_device("indices", indices)
        fits = indices.dim() == 1 and indices.is_contiguous()
        if not fits or indices.dtype not in (torch.int32, torch.int64):
            raise broken("indices", indices, "must be int32 or int64 [rows], contiguous")
        self._facts.check_activation("out", out)
        shape = (len(indices), matrix.width)
        if out.shape != shape or not out.is_contiguous():
            raise broken("out", out, f"must be {list(shape)}, contiguous")
        return self._inner.rows(matrix, indices, out)

    def linear(
        self,
        x: torch.Tensor,
        weight: Matrices,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        width = check_weight(self._facts, x, weight)
        self._check_rounding(weight)
        check_product(self._facts, x, width, bias, residual, out)
        return self._inner.linear(x, weight, bias, residual, out)

    def gated_linear(
        self,
        x: torch.Tensor,
        weight: Matrices,
        activation: Activation,
        bias: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        width = check_gated(self._facts, x, weight, activation, bias)
        self._check_rounding(weight)
        check_product(self._facts, x, width // 2, None, None, out)
        return self._inner.gated_linear(x, weight, activation, bias, out)

    def _check_format(self, format: WeightFormat, width: int) -> None:
        self._facts.check_open("a packed product")
        if not self._inner.multiplies(format):
            raise broken("format", format.name, "must be one that the device multiplies")
        if not format.fits(width):
            raise broken("width", width, f"must be whole groups of {format.name}")

    def _check_rounding(self, weight: Matrices) -> None:
        if len(weight) > 1 and len({self._inner.rounds(each.format) for each in weight}) > 1:
            names = " and ".join(matrix.format.name for matrix in weight)
            raise broken("weight", f"matrices of {names}", "must all be rounded alike")


def check_weight(facts: Facts, x: torch.Tensor, weight: torch.Tensor | Matrices) -> int:
    """A weight, and the rows that it multiplies: out features of ``x @ weight.T``."""
    if isinstance(weight, torch.Tensor):
        return check_matrix(facts, x, weight)
    check_x(facts, x)
    if not weight or not all(isinstance(matrix, Matrix) for matrix in weight):
        raise broken("weight", repr(weight), "must be one or more matrices, in a tuple")
    for matrix in weight:
        if matrix.width != x.shape[1]:
            rule = f"must take {x.shape[1]} features, as x has them"
            raise broken("weight", f"a matrix of width {matrix.width}", rule)
    return sum(matrix.out for matrix in weight)


def check_gated(
    facts: Facts,
    x: torch.Tensor,
    weight: torch.Tensor | Matrices,
    activation: Activation,
    bias: torch.Tensor | None,
) -> int:
    """The same for one of gate and up: the rows of both."""
    width = check_weight(facts, x, weight)
    if isinstance(weight, torch.Tensor):
        check_halves(weight, width)
    else:
        sizes = [matrix.out for matrix in weight]
        if len(sizes) > 2 or sizes[0] != sizes[-1] or width % 2:
            rule = "must be gate and up in one matrix, or one of equal size for each"
            raise broken("weight", f"matrices of {sizes} rows", rule)
    check_activation(activation)
    if bias is not None:
        facts.check_vector("bias", bias, width)
    return width
