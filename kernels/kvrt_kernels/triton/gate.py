"""The activation of a gated feed-forward layer: ``act(gate + bias) * (up + bias)``.

silu        z / (1 + exp(-z))
gelu_tanh   z / 2 * (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) = z / (1 + exp(-2 t))
                                                (Hendrycks & Gimpel 2016, arXiv 1606.08415)
clamped     z / (1 + exp(-alpha z)), z cut at a limit; times 1 + up, which is cut on both sides
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvrt.spi import ExpertActivation
from kvrt_kernels.triton.configs import options

BLOCK = 1024


@triton.jit
def gate_kernel(
    x,
    bias,
    out,
    size,
    limit,
    alpha,
    BLOCK: tl.constexpr,
    BIASED: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """BLOCK elements of one row. Grid: [rows, blocks of a row]."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = n < size
    gate = tl.load(x + row * 2 * size + n, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x + row * 2 * size + size + n, mask=mask, other=0.0).to(tl.float32)
    if BIASED:
        gate += tl.load(bias + n, mask=mask, other=0.0)
        up += tl.load(bias + size + n, mask=mask, other=0.0)
    power = gate
    if ACTIVATION == "clamped":
        gate = tl.minimum(gate, limit)
        up = tl.maximum(tl.minimum(up, limit), -limit) + 1
        power = alpha * gate
    elif ACTIVATION == "gelu_tanh":
        power = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    value = gate / (1 + tl.exp(tl.minimum(-power, 88.0))) * up  # exp(88) is finite, exp(89) not
    tl.store(out + row * size + n, value.to(out.dtype.element_ty), mask=mask)


def gated(
    x: Tensor,
    activation: ExpertActivation,
    bias: Tensor | None = None,
    out: Tensor | None = None,
    *,
    limit: float = 0.0,
    alpha: float = 1.0,
) -> Tensor:
    """Gate and multiply.

    Args:
        x: [rows, 2 * size] in a compute dtype, contiguous: gate, then up.
        activation: which.
        bias: float32 [2 * size], or None.
        out: contiguous, like the result, or None.
        limit, alpha: of ``clamped``, as `kvrt.spi.Experts` has them.

    Returns:
        [rows, size] in x's dtype.
    """
    rows, size = x.shape[0], x.shape[1] // 2
    y = torch.empty((rows, size), dtype=x.dtype, device=x.device) if out is None else out
    if rows:
        gate_kernel[(rows, triton.cdiv(size, BLOCK))](
            x,
            bias,
            y,
            size,
            limit,
            alpha,
            BLOCK=BLOCK,
            BIASED=bias is not None,
            ACTIVATION=activation,
            **options(warps=4),
        )
    return y
