"""The dense parts of a layer, by the native kernels."""

from typing import cast

from kvrt_kernels import append, linear, norm
from kvrt_kernels.attention import Plan
from torch import Tensor

from kvrt.spi import Activation, HeadNorm, Rotation


class NativeOps:
    """`DenseOps` over the compiled kernels, which check nothing. Activations are float32.

    There is none in plain torch: without the compiled kernels a model uses torch's own operators.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        return linear.launch(x, weight, bias, residual, out, self._threads)

    def gated_linear(
        self,
        x: Tensor,
        weight: Tensor,
        activation: Activation,
        bias: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        return linear.launch_gated(x, weight, activation, bias, out, self._threads)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
        return norm.launch(x, weight, eps, out, self._threads)

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
        append.launch(cast(Plan, plan), layer, q, k, v, rotation, norm, self._threads)
