"""What families put around products, on a device that beats torch's own operators."""

from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

PlainActivation = Literal["gelu", "gelu_tanh", "relu2"]
"""Of feed-forward layers without a gate: ``x / 2 (1 + erf(x / sqrt(2)))``, the same by tanh
(arXiv 1606.08415), ``max(x, 0)^2``."""


@runtime_checkable
class BranchOps(Protocol):
    """Norms of other kinds and in other places than `DenseOps` has them, scales, activations.

    A device that has these, too, records the steps of families that need them. Tensors are as in
    `DenseOps`: rows of x may have any stride, also where x is changed. What comes of a row depends
    on nothing else, and what comes of a number in `activate` not on its place.
    """

    def layer_norm(
        self,
        x: "Tensor",
        weight: "Tensor",
        bias: "Tensor | None",
        eps: float,
        out: "Tensor | None" = None,
    ) -> "Tensor":
        """``(x - mean(x)) / sqrt(var(x) + eps) * weight (+ bias)`` over the last dimension.

        Ba et al. 2016 (arXiv 1607.06450); the variance is the mean square of ``x - mean(x)``.
        """

    def norm_rows(
        self, x: "Tensor", weight: "Tensor", eps: float, out: "Tensor | None" = None
    ) -> None:
        """`DenseOps.rms_norm`, in place, or to `out`, whose rows may have any stride, too."""

    def add_branch(
        self, x: "Tensor", branch: "Tensor", weight: "Tensor | None", eps: float, scale: float
    ) -> None:
        """``x += scale * rms_norm(branch, weight)``; without a weight, ``x += scale * branch``.

        Args:
            branch: of x's shape, another tensor.
        """

    def activate(self, x: "Tensor", activation: PlainActivation) -> None:
        """``x = activation(x)``."""

    def scale_rows(self, x: "Tensor", factors: "Tensor") -> None:
        """``x = x * factors``, each row by its own.

        Args:
            factors: [tokens] in the dtype of x, contiguous.
        """
