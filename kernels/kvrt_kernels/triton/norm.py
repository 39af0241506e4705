"""RMS norm (Zhang & Sennrich 2019, arXiv 1910.07467): ``x / sqrt(mean(x^2) + eps) * weight``."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvrt_kernels.triton.configs import options


@triton.jit
def norm_kernel(x, weight, out, x_stride, size, eps, BLOCK: tl.constexpr):
    """One row. Grid: [rows]."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, BLOCK)
    mask = n < size
    values = tl.load(x + row * x_stride + n, mask=mask, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(values * values, 0) / size + eps)
    values = values * factor * tl.load(weight + n, mask=mask, other=0.0)
    tl.store(out + row * size + n, values.to(out.dtype.element_ty), mask=mask)


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
    rows, size = x.shape
    y = torch.empty((rows, size), dtype=x.dtype, device=x.device) if out is None else out
    if rows:
        block = triton.next_power_of_2(size)
        norm_kernel[(rows,)](
            x, weight, y, x.stride(0), size, eps, BLOCK=block, **options(warps(block))
        )
    return y


def warps(elements: int) -> int:
    """Enough warps for about 16 elements a thread, 1 to 16."""
    return max(1, min(16, elements // 512))
