"""Mixtures of experts: feed-forward layers of which each token uses a few, and what a device may
offer for them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from kvrt.spi.matrices import Matrices
from kvrt.spi.optional import Activation

if TYPE_CHECKING:
    from torch import Tensor

Score = Literal["softmax", "sigmoid", "chosen", "sparsemixer"]
GroupScore = Literal["best", "two"]
ExpertActivation = Activation | Literal["clamped"]


@dataclass(frozen=True, slots=True)
class Router:
    """How a token chooses experts by their logits, all in float32.

    Each expert has a score: with ``softmax`` its share of all, with ``sigmoid`` that of its logit
    alone, with ``chosen`` the logit itself. The `chosen` best are chosen, the best first; of equal
    ones that of the lower number. An expert's weight is its score; with ``chosen`` it is the
    softmax over the logits of those that are chosen.

    ``sparsemixer`` (arXiv 2409.12136) takes them one after the other. With m the largest logit z of
    those that are left, those with ``(m - z) / max(|z|, m) > 2 * jitter`` fall out, for this time;
    the expert of m is chosen, and its weight is its share in the softmax over the others.

    A choice may be corrected: by a number for each expert, which is added to its score while they
    are chosen, and not to its weight; and by groups.

    Args:
        score: of an expert.
        chosen: experts for each token.
        renormalise: weights are divided by their sum, or by `least` if that is larger.
        scale: multiplies the weights, at the end.
        groups: so many neighbours of equal number; experts of the `groups_chosen` best ones can be
            chosen, ties as above.
        groups_chosen: those.
        group_score: of a group its best score, or the sum of the best two, corrected.
        least: the least that is divided by.
        jitter: of ``sparsemixer``.
    """

    score: Score
    chosen: int
    renormalise: bool = False
    scale: float = 1.0
    groups: int = 1
    groups_chosen: int = 1
    group_score: GroupScore = "two"
    least: float = 1e-20
    jitter: float = 0.0


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Experts:
    """The experts of a layer: feed-forward layers with a gate, all of one shape.

    One object for each layer, as long as its weights live: a device may keep by it what it needs.

    With ``clamped`` as activation, and g and u the products with gate and up, g is cut at `limit`
    and u at both -`limit` and `limit`; ``down @ ((u + 1) * g * sigmoid(alpha * g))``.

    Args:
        count: how many.
        width: features between gate and down.
        gate_up: [count * 2 * width, in features], of each expert gate's rows and then up's; or
            matrices of codes: for each expert one with both, or one for gate and one for up.
        down: [count * out features, width]; or a matrix for each expert.
        activation: of the gate.
        gate_up_bias: float32 [count, 2 * width], likewise, or None.
        down_bias: float32 [count, out features], or None.
        limit, alpha: of ``clamped``.
    """

    count: int
    width: int
    gate_up: "Tensor | Matrices"
    down: "Tensor | Matrices"
    activation: ExpertActivation = "silu"
    gate_up_bias: "Tensor | None" = None
    down_bias: "Tensor | None" = None
    limit: float = 0.0
    alpha: float = 1.0


@runtime_checkable
class ExpertOps(Protocol):
    """Mixtures of experts, without asking the host which experts are used.

    Tensors are as in `DenseOps`, matrices of codes as in `PackedMatrices`. On a device that is
    `BATCH_INVARIANT` an expert's result for a token has the bits of `DenseOps.gated_linear` and
    `linear` with that expert's weights (of codes: of `PackedMatrices`), whatever else is in the
    batch. What a token gets is a sum in float32, of its first expert's result times its weight,
    then its second's, and so on: the order of additions is part of the operator.
    """

    def route(
        self,
        logits: "Tensor",
        router: Router,
        correction: "Tensor | None",
        chosen: "Tensor",
        weights: "Tensor",
    ) -> None:
        """Choose each token's experts.

        Args:
            logits: float32 [tokens, experts], contiguous.
            correction: float32 [experts], added to the scores for the choice; None: nothing is.
            chosen: int32 [tokens, chosen], written: the experts, in the order of the choice.
            weights: float32 [tokens, chosen], written: their weights.
        """

    def mix(
        self,
        x: "Tensor",
        experts: Experts,
        chosen: "Tensor",
        weights: "Tensor",
        residual: "Tensor | None",
        out: "Tensor",
    ) -> None:
        """Write each token's sum of its experts' results to `out`, added to `residual`.

        Args:
            x: [tokens, in features] in a compute dtype; rows may have any stride.
            chosen: int32 [tokens, chosen], contiguous, each from 0 to below `experts.count`.
            weights: float32 [tokens, chosen], contiguous.
            residual: [tokens, out features] in x's dtype, contiguous, may be `out`; None: 0.
            out: likewise, and not x.
        """
