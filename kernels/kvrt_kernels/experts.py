"""Mixtures of experts: the calls. `kvrt.spi.ExpertOps` says what, native/experts.cpp how."""

from typing import Any, Final

from torch import Tensor

from kvrt.spi import ExpertActivation, Experts, Matrices, Router
from kvrt.spi.experts import Score
from kvrt_kernels._args import (
    DTYPE_CODE,
    DTYPE_OF_CODES,
    DTYPE_OF_EXACT_CODES,
    address,
    check_rows,
    need,
    threads_or_default,
)
from kvrt_kernels._load import native
from kvrt_kernels.packed import check_formats
from kvrt_kernels.panels import packing

SCORE_CODE: Final[dict[Score, int]] = {"softmax": 0, "sigmoid": 1, "chosen": 2, "sparsemixer": 3}
"""The numbers of `enum class Score` in native/experts.h."""

EXPERT_GATE_CODE: Final[dict[ExpertActivation, int]] = {"silu": 1, "gelu_tanh": 2, "clamped": 3}
"""The numbers of `enum class Gate`."""


def route(
    logits: Tensor,
    router: Router,
    correction: Tensor | None,
    chosen: Tensor,
    weights: Tensor,
    threads: int | None = None,
) -> None:
    """Choose each token's experts: see `kvrt.spi.ExpertOps.route`. Checks nothing."""
    tokens, experts = logits.shape
    native().route(
        address(logits),
        address(correction),
        address(chosen),
        address(weights),
        tokens,
        experts,
        router.chosen,
        SCORE_CODE[router.score],
        router.renormalise,
        router.scale,
        router.groups,
        router.groups_chosen,
        router.group_score == "two",
        router.least,
        router.jitter,
        threads_or_default(threads),
    )


class Products:
    """The products of a layer's experts.

    Args:
        experts: their weights must live as long as this is used; it does not keep them.
        exact: with codes, activations are multiplied as they are.

    Raises:
        ContractError: there are no products with the format of a weight.
    """

    def __init__(self, experts: Experts, *, exact: bool = False) -> None:
        count, width = experts.count, experts.width
        gate_up, dtype = _native(experts.gate_up, count, exact)
        down, down_dtype = _native(experts.down, count, exact)
        self._in = _columns(experts.gate_up)
        self._weights = (
            dtype,
            down_dtype,
            EXPERT_GATE_CODE[experts.activation],
            experts.limit,
            experts.alpha,
            gate_up,
            down,
            _floats(experts.gate_up),
            _floats(experts.down),
            address(experts.gate_up_bias),
            address(experts.down_bias),
        )
        self._sizes = count, self._in, width, _rows(experts.down) // count

    def mix(
        self,
        x: Tensor,
        chosen: Tensor,
        weights: Tensor,
        residual: Tensor | None,
        out: Tensor,
        threads: int | None = None,
    ) -> None:
        """See `kvrt.spi.ExpertOps.mix`; x is float32.

        Raises:
            ContractError: x has another shape or dtype.
        """
        check_rows("x", x, self._in)
        native().experts(
            *self._weights,
            address(x),
            x.stride(0),
            address(chosen),
            address(weights),
            address(residual),
            address(out),
            x.shape[0],
            chosen.shape[1],
            *self._sizes,
            threads_or_default(threads),
        )


def _columns(weight: Tensor | Matrices) -> int:
    return weight[0].width if isinstance(weight, tuple) else weight.shape[1]


def _rows(weight: Tensor | Matrices) -> int:
    return sum(one.out for one in weight) if isinstance(weight, tuple) else weight.shape[0]


def _native(weight: Tensor | Matrices, count: int, exact: bool) -> tuple[Any, int]:
    """What the native module has of a weight, and the number of its dtype."""
    if not isinstance(weight, tuple):
        return native().ExpertWeights([], 0), DTYPE_CODE[weight.dtype]
    need(len(weight) % count == 0, f"{len(weight)} matrices are not as many for each expert")
    check_formats(weight, exact)
    rows = [(matrix.data.data_ptr(), matrix.out, *packing(matrix)) for matrix in weight]
    made = native().ExpertWeights(rows, len(weight) // count)
    return made, DTYPE_OF_EXACT_CODES if exact else DTYPE_OF_CODES


def _floats(weight: Tensor | Matrices) -> int:
    return 0 if isinstance(weight, tuple) else address(weight)
