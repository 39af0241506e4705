"""What families put around a layer's products, by the native kernels."""

from kvrt_kernels import branches
from torch import Tensor

from kvrt.spi import PlainActivation


class NativeBranches:
    """`BranchOps` over the compiled kernels, which check nothing. Activations are float32."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def layer_norm(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        out: Tensor | None = None,
    ) -> Tensor:
        return branches.layer_norm(x, weight, bias, eps, out, self._threads)

    def norm_rows(self, x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> None:
        branches.norm_rows(x, weight, eps, out, self._threads)

    def add_branch(
        self, x: Tensor, branch: Tensor, weight: Tensor | None, eps: float, scale: float
    ) -> None:
        branches.add_branch(x, branch, weight, eps, scale, self._threads)

    def activate(self, x: Tensor, activation: PlainActivation) -> None:
        branches.activate(x, activation, self._threads)

    def scale_rows(self, x: Tensor, factors: Tensor) -> None:
        branches.scale_rows(x, factors, self._threads)
