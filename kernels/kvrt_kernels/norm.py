"""RMS norm (Zhang & Sennrich 2019, arXiv 1910.07467), alone or after adding to the residual."""

import torch
from torch import Tensor

from kvrt_kernels._args import address, check_rows, check_vector, need, threads_or_default
from kvrt_kernels._load import native


def rms_norm(x: Tensor, weight: Tensor, eps: float, threads: int | None = None) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension.

    Args:
        x: float32 [rows, size]; rows may have any stride.
        weight: float32 [size].
        eps: added to the mean square.
        threads: None for as many as torch uses.

    Returns:
        float32 [rows, size].

    Raises:
        ContractError: a tensor has another shape or dtype.
    """
    check_rows("x", x, weight.shape[0])
    check_vector("weight", weight, weight.shape[0])
    return launch(x, weight, eps, None, threads)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, threads: int | None = None
) -> Tensor:
    """``residual += x``, in place, and then the norm of `residual`.

    Args:
        x: float32 [rows, size]; rows may have any stride.
        residual: float32 [rows, size], changed in place; rows may have any stride.
        weight: float32 [size].
        eps: added to the mean square.
        threads: None for as many as torch uses.

    Returns:
        float32 [rows, size].

    Raises:
        ContractError: a tensor has another shape or dtype.
    """
    check_rows("residual", residual, weight.shape[0])
    need(residual.shape == x.shape, f"residual is {list(residual.shape)}, x {list(x.shape)}")
    check_rows("x", x, weight.shape[0])
    check_vector("weight", weight, weight.shape[0])
    return launch(x, weight, eps, None, threads, residual)


def launch(
    x: Tensor,
    weight: Tensor,
    eps: float,
    out: Tensor | None,
    threads: int | None,
    residual: Tensor | None = None,
) -> Tensor:
    """Both norms without their checks, for callers that have made them; into `out`, if given."""
    size = weight.shape[0]
    y = torch.empty(x.shape[0], size) if out is None else out
    native().rms_norm(
        address(x),
        x.stride(0),
        address(residual),
        0 if residual is None else residual.stride(0),
        address(weight),
        address(y),
        size,
        x.shape[0],
        size,
        eps,
        threads_or_default(threads),
    )
    return y
