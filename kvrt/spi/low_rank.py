"""Matrices of low rank that some tokens of a step have added to a model's own, and what a device
may offer for them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from kvrt.spi.optional import Activation

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """What is added to a matrix, in parts: ``b.T @ a``, each part's to rows of its own.

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
    """Products of many adapters in one call.

    Tensors are as in `DenseOps`, and matrices in any of the device's `weight_dtypes`. On a device
    that is `BATCH_INVARIANT` a token's result does not depend on what else is in the batch.
    """

    def add(self, x: "Tensor", rows: LowRankRows, out: "Tensor") -> None:
        """``out[token] += (a @ x[token]) @ b`` for all tokens of the segments.

        Args:
            x: [tokens, in features].
            out: [tokens, out features] in x's dtype, contiguous, not x.
        """

    def add_gated(
        self,
        x: "Tensor",
        rows: LowRankRows,
        both: "Tensor",
        activation: Activation,
        out: "Tensor",
    ) -> None:
        """`add` to `both`, then ``act(gate) * up`` of all tokens.

        With `both` of `DenseOps.linear`, a token without anything to add has what `gated_linear`
        gives, to the bit on a device that is `BATCH_INVARIANT`.

        Args:
            both: [tokens, 2 * features], contiguous: gate, then up; changed.
            out: [tokens, features] in x's dtype, contiguous, not x.
        """
