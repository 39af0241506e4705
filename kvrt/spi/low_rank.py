"""Matrices of low rank that some tokens of a step have added to a model's own, and what a device
may offer for them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from kvrt.spi.matrices import Matrices
from kvrt.spi.optional import Activation

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class LowRank:
    """What is added to a matrix, in parts: ``b.T @ a``, each part's to rows of its own.

    A device may keep by it what it needs, as long as it lives.

    Args:
        a: [sum of all parts' ranks, in features], contiguous, one part's rows behind the other's.
        parts: first row, and b [rank, rows], contiguous, in the dtype of a. No two parts are
            added to the same row.
    """

    a: "Tensor"
    parts: "tuple[tuple[int, Tensor], ...]"


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class LowRankRows:
    """Which tokens of a step have what added to a matrix.

    A device may keep by it what it needs, as long as it lives.

    Args:
        segments: first token, the one behind the last, and what these have: all of one dtype, for
            a matrix of one shape. At least one; tokens in ascending order, none in two of them.
    """

    segments: tuple[tuple[int, int, LowRank], ...]


@runtime_checkable
class LowRankOps(Protocol):
    """Products of which some tokens have more added, in one call.

    Arguments are those of `DenseOps`, or of `PackedMatrices` where the weight is codes. Of tokens
    in no segment the results are theirs, and on a device that is `BATCH_INVARIANT` have their bits;
    a token's own do not depend there on what else is in the batch. Matrices of low rank have any of
    the device's `weight_dtypes`.
    """

    def adapted_linear(
        self,
        x: "Tensor",
        weight: "Tensor | Matrices",
        rows: LowRankRows,
        bias: "Tensor | None" = None,
        residual: "Tensor | None" = None,
        out: "Tensor | None" = None,
    ) -> "Tensor":
        """``x @ weight.T + (a @ x[token]) @ b (+ bias) (+ residual)``, with what each token has.

        Args:
            x: [tokens, in features].
            out: [tokens, out features] in x's dtype, contiguous, not x; it may be the residual.
        """

    def adapted_gated_linear(
        self,
        x: "Tensor",
        weight: "Tensor | Matrices",
        rows: LowRankRows,
        activation: Activation,
        bias: "Tensor | None" = None,
        out: "Tensor | None" = None,
    ) -> "Tensor":
        """``act(gate) * up`` of what `adapted_linear` gives: gate's features and then up's."""
