"""Matrix products with row-major weights: at memory speed for a few rows, blocked for many.

A row's result has the same bits for any number of rows beside it and any number of threads
(native/linear_lanes.h says why).
"""

from typing import Final

import torch
from torch import Tensor

from kvrt.errors import ContractError
from kvrt.spi import Activation
from kvrt_kernels._args import (
    DTYPE_CODE,
    address,
    check_rows,
    check_vector,
    need,
    threads_or_default,
)
from kvrt_kernels._load import native
from kvrt_kernels.low_rank import Added

GATE_CODE: Final[dict[Activation, int]] = {"silu": 1, "gelu_tanh": 2}
"""The numbers of `enum class Gate` in native/api.h."""


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    threads: int | None = None,
) -> Tensor:
    """``x @ weight.T (+ bias) (+ residual)``, accumulated in float32.

    Args:
        x: float32 [rows, in]; rows may have any stride.
        weight: [out, in], contiguous; float32, bfloat16 or float16.
        bias: float32 [out], or None.
        residual: float32 [rows, out], or None; rows may have any stride.
        threads: None for as many as torch uses.

    Returns:
        float32 [rows, out].

    Raises:
        ContractError: a tensor has another shape or dtype.
    """
    _check(x, weight)
    out_features = weight.shape[0]
    check_vector("bias", bias, out_features)
    if residual is not None:
        check_rows("residual", residual, out_features)
        need(
            residual.shape[0] == x.shape[0],
            f"residual has {residual.shape[0]} rows but x has {x.shape[0]}",
        )
    return launch(x, weight, bias, residual, None, threads)


def gated_linear(
    x: Tensor,
    weight: Tensor,
    activation: Activation,
    bias: Tensor | None = None,
    threads: int | None = None,
) -> Tensor:
    """``act(x @ gate.T) * (x @ up.T)``, the first half of a gated feed-forward layer, in one pass.

    Args:
        x: float32 [rows, in]; rows may have any stride.
        weight: [2 * out, in], contiguous, gate's rows and then up's; float32, bfloat16 or float16.
        activation: ``silu``: z * sigmoid(z); ``gelu_tanh``: GELU by its tanh approximation
            (Hendrycks & Gimpel 2016, arXiv 1606.08415).
        bias: float32 [2 * out], added to the products first, or None.
        threads: None for as many as torch uses.

    Returns:
        float32 [rows, out].

    Raises:
        ContractError: a tensor has another shape or dtype, or there is no such activation.
    """
    _check(x, weight)
    need(weight.shape[0] % 2 == 0, f"gate and up have {weight.shape[0]} rows together: not even")
    if activation not in GATE_CODE:
        raise ContractError(
            f"there is no activation {activation!r}", fix=f"use one of: {', '.join(GATE_CODE)}"
        )
    check_vector("bias", bias, weight.shape[0])
    return launch_gated(x, weight, activation, bias, None, threads)


def _check(x: Tensor, weight: Tensor) -> None:
    if weight.dtype not in DTYPE_CODE or weight.dim() != 2 or not weight.is_contiguous():
        raise ContractError(
            "weight must be contiguous float32, bfloat16 or float16 [out, in], "
            f"not {weight.dtype} {list(weight.shape)} with strides {list(weight.stride())}"
        )
    check_rows("x", x, weight.shape[1])


def launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor | None,
    threads: int | None,
    added: Added | None = None,
) -> Tensor:
    """`linear` without its checks, for callers that have made them; into `out`, if given.

    Args:
        added: to the products with the weight, before anything else is.
    """
    return _run(x, weight, 0, weight.shape[0], bias, residual, out, threads, added)


def launch_gated(
    x: Tensor,
    weight: Tensor,
    activation: Activation,
    bias: Tensor | None,
    out: Tensor | None,
    threads: int | None,
    added: Added | None = None,
) -> Tensor:
    """`gated_linear` without its checks, likewise."""
    gate, out_features = GATE_CODE[activation], weight.shape[0] // 2
    return _run(x, weight, gate, out_features, bias, None, out, threads, added)


def _run(
    x: Tensor,
    weight: Tensor,
    gate: int,
    out_features: int,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor | None,
    threads: int | None,
    added: Added | None,
) -> Tensor:
    rows = x.shape[0]
    y = torch.empty(rows, out_features) if out is None else out
    native().linear(
        DTYPE_CODE[weight.dtype],
        gate,
        address(x),
        x.stride(0),
        address(weight),
        address(bias),
        address(residual),
        0 if residual is None else residual.stride(0),
        address(y),
        out_features,
        rows,
        out_features,
        weight.shape[1],
        threads_or_default(threads),
        added,
    )
    return y
