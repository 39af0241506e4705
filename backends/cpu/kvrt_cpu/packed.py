"""Products with weights that stay codes, by the native kernels."""

from kvrt_kernels import packed, panels
from torch import Tensor

from kvrt.spi import Activation, Matrices, Matrix, Rounding, WeightFormat


class NativeMatrices:
    """`PackedMatrices` over the compiled kernels.

    Args:
        threads: how many compute.
        exact: activations are multiplied as they are, and not rounded to codes.
    """

    def __init__(self, threads: int, exact: bool) -> None:
        self._threads = threads
        self._exact = exact

    def multiplies(self, format: WeightFormat) -> bool:
        return panels.packing_of(format) is not None

    def rounds(self, format: WeightFormat) -> Rounding:
        return packed.rounding(format, exact=self._exact)

    def nbytes(self, format: WeightFormat, out: int, width: int) -> int:
        return panels.nbytes(format, out, width)

    def pack(self, format: WeightFormat, plain: Tensor, width: int, into: Tensor) -> Matrix:
        return panels.pack(format, plain, width, into, self._threads)

    def rows(self, matrix: Matrix, indices: Tensor, out: Tensor) -> Tensor:
        return panels.rows(matrix, indices, out)

    def linear(
        self,
        x: Tensor,
        weight: Matrices,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        return packed.linear(x, weight, bias, residual, out, self._threads, exact=self._exact)

    def gated_linear(
        self,
        x: Tensor,
        weight: Matrices,
        activation: Activation,
        bias: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        return packed.gated_linear(
            x, weight, activation, bias, out, self._threads, exact=self._exact
        )
