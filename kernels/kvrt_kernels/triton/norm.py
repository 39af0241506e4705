"""Norms of rows, and what is added to them.

RMS norm    x / sqrt(mean(x^2) + eps) * weight       Zhang & Sennrich 2019, arXiv 1910.07467
LayerNorm   the same of x - mean(x), (+ bias)        Ba et al. 2016, arXiv 1607.06450
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvrt_kernels.triton.configs import options


@triton.jit
def norm_kernel(
    x,
    weight,
    bias,
    added,
    out,
    x_stride,
    added_stride,
    out_stride,
    size,
    eps,
    scale,
    BLOCK: tl.constexpr,
    CENTRED: tl.constexpr,
    NORMED: tl.constexpr,
    BIASED: tl.constexpr,
    ADDED: tl.constexpr,
):
    """One row. Grid: [rows]. With ADDED, `scale` times it is added to that of `added`."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, BLOCK)
    mask = n < size
    values = tl.load(x + row * x_stride + n, mask=mask, other=0.0).to(tl.float32)
    if CENTRED:
        values = tl.where(mask, values - tl.sum(values, 0) / size, 0.0)
    if NORMED:
        factor = tl.rsqrt(tl.sum(values * values, 0) / size + eps)
        values = values * factor * tl.load(weight + n, mask=mask, other=0.0)
    if BIASED:
        values += tl.load(bias + n, mask=mask, other=0.0)
    if ADDED:
        before = tl.load(added + row * added_stride + n, mask=mask, other=0.0)
        values = before.to(tl.float32) + scale * values
    tl.store(out + row * out_stride + n, values.to(out.dtype.element_ty), mask=mask)


def launch(
    x: Tensor,
    out: Tensor,
    weight: Tensor | None,
    eps: float,
    *,
    bias: Tensor | None = None,
    added: Tensor | None = None,
    scale: float = 1.0,
    centred: bool = False,
) -> None:
    """Write x, normed if there is a weight, to `out`, which may be x or what it is added to.

    Args:
        x, added, out: [rows, size] in a compute dtype; rows may have any stride.
        weight, bias: float32 [size].
    """
    rows, size = x.shape
    if rows:
        block = triton.next_power_of_2(size)
        kinds: dict[str, Any] = {
            "CENTRED": centred,
            "NORMED": weight is not None,
            "BIASED": bias is not None,
            "ADDED": added is not None,
        }
        norm_kernel[(rows,)](
            x,
            weight,
            bias,
            added,
            out,
            x.stride(0),
            0 if added is None else added.stride(0),
            out.stride(0),
            size,
            eps,
            scale,
            BLOCK=block,
            **kinds,
            **options(warps(block)),
        )


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """The norm of each row.

    Args:
        x: [rows, size] in a compute dtype; rows may have any stride.
        weight: float32 [size].
        eps: added to the mean square.
        out: contiguous, like the result, or None.

    Returns:
        [rows, size] in x's dtype.
    """
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    launch(x, y, weight, eps)
    return y


def warps(elements: int) -> int:
    """Enough warps for about 16 elements a thread, 1 to 16."""
    return max(1, min(16, elements // 512))
