"""The dense parts of a layer: `TritonOps` is a `kvrt.spi.DenseOps`.

Matrix products are the vendor's library's, by torch; Triton's part is what they leave in between.
"""

from typing import cast

import torch
from torch import Tensor

from kvrt.spi import Activation, HeadNorm, Rotation
from kvrt_kernels.triton import norm as norms
from kvrt_kernels.triton.append import rotate_append
from kvrt_kernels.triton.gate import gated
from kvrt_kernels.triton.plan import Plan


class TritonOps:
    """See `kvrt.spi.DenseOps`. The calls check nothing; `kvrt.wrappers.Checked` has.

    A weight of another dtype than `x` is converted in each call: keep weights in the compute
    dtype. How a product is summed is the library's choice and may depend on the number of rows.
    """

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        w = weight.to(x.dtype).T
        if bias is not None and residual is not None:
            y = torch.addmm(bias.to(x.dtype), x, w)
            return torch.add(y, residual, out=out)
        if residual is not None:
            return torch.addmm(residual, x, w, out=out)
        if bias is not None:
            return torch.addmm(bias.to(x.dtype), x, w, out=out)
        return torch.mm(x, w, out=out)

    def gated_linear(
        self,
        x: Tensor,
        weight: Tensor,
        activation: Activation,
        bias: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        return gated(torch.mm(x, weight.to(x.dtype).T), activation, bias, out)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
        return norms.rms_norm(x, weight, eps, out)

    def rotate_append(
        self,
        plan: object,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rotation: Rotation | None,
        norm: HeadNorm | None,
    ) -> None:
        rotate_append(cast(Plan, plan), layer, q, k, v, rotation, norm)
