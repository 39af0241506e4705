"""Products with weights that stay codes: the calls. How matrices are laid out: `panels`."""

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from kvrt.errors import ContractError
from kvrt.spi import Activation, Matrices, Rounding, WeightFormat
from kvrt_kernels._args import address, check_rows, check_vector, need, threads_or_default
from kvrt_kernels._load import native
from kvrt_kernels.linear import GATE_CODE
from kvrt_kernels.low_rank import Added
from kvrt_kernels.panels import packing, packing_of

MOST_MATRICES: Final = 4
"""That one call multiplies, as in native/api.h: activations are rounded to codes once for all."""


def rounding(format: WeightFormat, *, exact: bool) -> Rounding:
    """What products with a format round.

    Args:
        exact: they multiply activations as they are.
    """
    if exact:
        return "none"
    return "bfloat16" if format.codes == "e4m3" else "codes"


def linear(
    x: Tensor,
    weight: Matrices,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    threads: int | None = None,
    *,
    exact: bool = False,
    added: Added | None = None,
) -> Tensor:
    """``x @ weight.T (+ bias) (+ residual)``; see `kvrt.spi.PackedMatrices`.

    Args:
        exact: x is multiplied as it is: the bits are those of `kvrt_kernels.linear.linear` with
            weights unpacked to float32. Otherwise `rounding` says what is rounded first; where that
            is "bfloat16", the bits are those with weights unpacked to it.
        added: to the products with the weight, before anything else is; x as it is, or as products
            with floats of that dtype round it.

    Raises:
        ContractError: a tensor has another shape or dtype.
    """
    total = sum(matrix.out for matrix in weight)
    _check(x, weight, exact)
    check_vector("bias", bias, total)
    y = torch.empty(x.shape[0], total) if out is None else out
    for first, last, some in _fours(weight):
        _run(
            x,
            some,
            0,
            None if bias is None else bias[first:last],
            None if residual is None else residual[:, first:last],
            y[:, first:last],
            threads,
            exact,
            added,
            first,
        )
    return y


def _fours(weight: Matrices) -> Iterator[tuple[int, int, Matrices]]:
    """As many matrices as a call takes, with their first feature and that after their last."""
    first = 0
    for at in range(0, len(weight), MOST_MATRICES):
        some = weight[at : at + MOST_MATRICES]
        last = first + sum(matrix.out for matrix in some)
        yield first, last, some
        first = last


def gated_linear(
    x: Tensor,
    weight: Matrices,
    activation: Activation,
    bias: Tensor | None = None,
    out: Tensor | None = None,
    threads: int | None = None,
    *,
    exact: bool = False,
    added: Added | None = None,
) -> Tensor:
    """``act(x @ gate.T) * (x @ up.T)``, likewise.

    Raises:
        ContractError: a tensor has another shape or dtype.
    """
    total = sum(matrix.out for matrix in weight)
    _check(x, weight, exact)
    check_vector("bias", bias, total)
    need(len(weight) < 3 and total % 2 == 0, f"gate and up are {len(weight)} matrices of {total}")
    y = torch.empty(x.shape[0], total // 2) if out is None else out
    _run(x, weight, GATE_CODE[activation], bias, None, y, threads, exact, added)
    return y


def _check(x: Tensor, weight: Matrices, exact: bool) -> None:
    check_formats(weight, exact)
    for matrix in weight:
        check_rows("x", x, matrix.width)


def check_formats(weight: Matrices, exact: bool) -> None:
    """There must be products with all matrices of a weight, which round alike."""
    for matrix in weight:
        if packing_of(matrix.format) is None:
            raise ContractError(f"there are no products with {matrix.format.name}")
    ways = {rounding(matrix.format, exact=exact) for matrix in weight}
    need(len(ways) < 2, f"matrices of one weight round to {' and '.join(sorted(ways))}")


def _run(
    x: Tensor,
    weight: Matrices,
    gate: int,
    bias: Tensor | None,
    residual: Tensor | None,
    y: Tensor,
    threads: int | None,
    exact: bool,
    added: Added | None,
    first: int = 0,
) -> None:
    native().packed_linear(
        [(matrix.data.data_ptr(), matrix.out, *packing(matrix)) for matrix in weight],
        exact,
        gate,
        address(x),
        x.stride(0),
        address(bias),
        address(residual),
        0 if residual is None else residual.stride(0),
        address(y),
        y.stride(0),
        x.shape[0],
        y.shape[1],
        weight[0].width,
        threads_or_default(threads),
        added,
        first,
    )
