"""RMS norm (Zhang & Sennrich 2019, arXiv 1910.07467)."""

import torch
from torch import Tensor

from kvrt_kernels._args import address, check_rows, check_vector, threads_or_default
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


def launch(
    x: Tensor, weight: Tensor, eps: float, out: Tensor | None, threads: int | None
) -> Tensor:
    """`rms_norm` without its checks, for callers that have made them; into `out`, if given."""
    size = weight.shape[0]
    y = torch.empty(x.shape[0], size) if out is None else out
    native().rms_norm(
        address(x),
        x.stride(0),
        address(weight),
        address(y),
        size,
        x.shape[0],
        size,
        eps,
        threads_or_default(threads),
    )
    return y
