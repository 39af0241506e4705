"""The operators of a decoder: in plain torch, for devices that bring none of their own, and for
weights some of which stay codes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kvrt.spi import (
    Activation,
    DenseOps,
    HeadNorm,
    Matrices,
    PackedMatrices,
    PagedAttention,
    Rotation,
)


class TorchOps:
    """`kvrt.spi.DenseOps` in torch's own operators, on any device.

    A weight in another dtype than the activations is converted for each product: right, but slow,
    which is why devices that compute in float32 bring a `DenseOps` that reads 16-bit weights.
    """

    def __init__(self, attention: PagedAttention) -> None:
        self._attention = attention

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        result = F.linear(x, weight.to(x.dtype))
        if bias is not None:
            result += bias
        if residual is not None:
            result += residual
        return result if out is None else out.copy_(result)

    def gated_linear(
        self,
        x: Tensor,
        weight: Tensor,
        activation: Activation,
        bias: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        gate, up = self.linear(x, weight, bias).chunk(2, dim=-1)
        act = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
        return torch.mul(act, up, out=out)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
        result = F.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)
        return result if out is None else out.copy_(result)

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
        if norm is not None:
            q.copy_(self.rms_norm(q, norm.q, norm.eps))
            k.copy_(self.rms_norm(k, norm.k, norm.eps))
        if rotation is not None:
            rotate(q, rotation)
            rotate(k, rotation)
        self._attention.append(plan, layer, k, v)


class MixedOps:
    """The operators of a model whose weights are floats or codes.

    Args:
        dense: for weights that are floats, and everything else.
        packed: for weights that are codes.
    """

    def __init__(self, dense: DenseOps, packed: PackedMatrices) -> None:
        self._dense = dense
        self._packed = packed
        self.rms_norm = dense.rms_norm
        self.rotate_append = dense.rotate_append

    def linear(
        self,
        x: Tensor,
        weight: Tensor | Matrices,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        if isinstance(weight, tuple):
            return self._packed.linear(x, weight, bias, residual, out)
        return self._dense.linear(x, weight, bias, residual, out)

    def gated_linear(
        self,
        x: Tensor,
        weight: Tensor | Matrices,
        activation: Activation,
        bias: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        if isinstance(weight, tuple):
            return self._packed.gated_linear(x, weight, activation, bias, out)
        return self._dense.gated_linear(x, weight, activation, bias, out)


def rotate(x: Tensor, rotation: Rotation) -> None:
    """Rotate the pairs (i, i + rotary_dim / 2) of each head, in place."""
    cos = rotation.cos.unsqueeze(1)  # [tokens, 1, rotary_dim / 2]
    sin = rotation.sin.unsqueeze(1)
    half = cos.shape[-1]
    first, second = x[..., :half].float(), x[..., half : 2 * half].float()
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    x[..., : 2 * half].copy_(rotated)
