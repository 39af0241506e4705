"""`PackedMatrices` in plain torch, on any device whose tensors are in host memory.

For tests of what uses packed weights where no kernels are: right, and as slow as unpacking a matrix
for each product.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from kvrt.spi import (
    Activation,
    Backend,
    Device,
    DeviceOptions,
    Extension,
    GraphCapture,
    Matrices,
    Matrix,
    PackedMatrices,
    Probe,
    Rounding,
    WeightFormat,
)
from kvrt.spi.plain import unpack
from kvrt.wrappers.wrapper import Wrapper

BLOCK = 32
SMALLEST = 2.0**-100


def rounded(x: Tensor) -> Tensor:
    """x as the codes that `PackedMatrices` may make of it, times their scales: float32."""
    width = x.shape[-1]
    blocks = F.pad(x.float(), (0, -width % BLOCK)).view(len(x), -1, BLOCK)
    most = blocks.abs().amax(-1, keepdim=True)
    codes = (blocks * (127 / most)).round()
    values = torch.where(most < SMALLEST, 0.0, codes * (most / 127))
    whole = most.isfinite().all(1, keepdim=True)  # also false of NaN
    return torch.where(whole, values, torch.nan).flatten(1)[:, :width]


class TorchMatrices:
    """Keeps matrices in the plain form.

    Args:
        exact: x is multiplied as it is, and not rounded to codes.
    """

    def __init__(self, exact: bool) -> None:
        self._exact = exact

    def multiplies(self, format: WeightFormat) -> bool:
        return True

    def rounds(self, format: WeightFormat) -> Rounding:
        return "none" if self._exact or format.codes != "whole" else "codes"

    def nbytes(self, format: WeightFormat, out: int, width: int) -> int:
        return out * format.row_bytes(width)

    def pack(self, format: WeightFormat, plain: Tensor, width: int, into: Tensor) -> Matrix:
        into.copy_(plain.flatten())
        return Matrix(format, into, len(plain), width)

    def rows(self, matrix: Matrix, indices: Tensor, out: Tensor) -> Tensor:
        rows = matrix.data.view(matrix.out, -1)[indices]
        return out.copy_(unpack(matrix.format, rows, matrix.width))

    def linear(
        self,
        x: Tensor,
        weight: Matrices,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        result = self._products(x, weight)
        if bias is not None:
            result += bias
        if residual is not None:
            result += residual
        result = result.to(x.dtype)
        return result if out is None else out.copy_(result)

    def gated_linear(
        self,
        x: Tensor,
        weight: Matrices,
        activation: Activation,
        bias: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        products = self._products(x, weight)
        gate, up = (products if bias is None else products + bias).chunk(2, dim=-1)
        act = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
        result = (act * up).to(x.dtype)
        return result if out is None else out.copy_(result)

    def _products(self, x: Tensor, weight: Matrices) -> Tensor:
        """float32 [tokens, rows of all matrices]."""
        return torch.cat([self._product(x, matrix) for matrix in weight], dim=-1)

    def _product(self, x: Tensor, matrix: Matrix) -> Tensor:
        given = rounded(x) if self.rounds(matrix.format) == "codes" else x.float()
        plain = matrix.data.view(matrix.out, -1)
        values = unpack(matrix.format, plain, matrix.width)
        # Row by row, each at an address of its own, so that its bits do not depend on the others.
        return torch.cat([F.linear(row.clone(), values) for row in torch.split(given, 1)])


class PackingDevice(Wrapper):
    """A device with `TorchMatrices` besides.

    Args:
        inner: the device that does everything else.
        exact: see `TorchMatrices`.
    """

    def __init__(self, inner: Device, *, exact: bool = False) -> None:
        super().__init__(inner)
        self._matrices = TorchMatrices(exact)

    def extension(self, kind: type[Extension]) -> Extension | None:
        asked = cast(type, kind)
        if asked is PackedMatrices:
            return cast(Extension, self._matrices)
        if asked is GraphCapture:  # it would not record these products
            return None
        return super().extension(kind)


class PackingBackend:
    """A backend of such devices."""

    def __init__(self, name: str, inner: Backend) -> None:
        self.name = name
        self.spi = inner.spi
        self._inner = inner

    def probe(self) -> Probe:
        return self._inner.probe()

    def open(self, index: int = 0, options: DeviceOptions = DeviceOptions()) -> Device:
        return PackingDevice(self._inner.open(index, options), exact=options.exact)
