"""Short causal convolutions of each channel, over pages.

    out[t, c] = act(bias[c] + sum over j of weight[c, j] * x[t - kernel + 1 + j, c])

Tokens of the same step are read from `x`, those of earlier ones from their slots; so no program
needs what another one writes.
"""

import triton
import triton.language as tl
from torch import Tensor

from kvrt.spi import StateActivation
from kvrt_kernels.triton.configs import options
from kvrt_kernels.triton.state_plan import COUNTS, TABLES, StatePlan

TOKENS, CHANNELS = 16, 64
"""Of one program."""


@triton.jit(
    do_not_specialize=["tokens", *COUNTS], do_not_specialize_on_alignment=["sequences", *TABLES]
)
def convolve_kernel(
    x,
    weight,
    bias,
    out,
    kv,
    sequences,
    starts,
    contexts,
    pages,
    x_stride,
    out_stride,
    page_stride,
    columns,
    tokens,
    KERNEL: tl.constexpr,
    WIDTH: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BIASED: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """BLOCK_C channels of BLOCK_T tokens. Grid: [tokens, channels]. `kv` is the address of the
    layer's first slot."""
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    own = t < tokens
    here = own[:, None] & (c < WIDTH)
    sequence = tl.load(sequences + t, mask=own, other=0)
    begin = tl.load(starts + sequence)
    position = tl.load(contexts + sequence) - tl.load(starts + sequence + 1) + t
    table = pages + sequence.to(tl.int64) * columns
    slots = kv.to(tl.pointer_type(x.dtype.element_ty))
    total = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    for j in range(KERNEL):
        back = KERNEL - 1 - j
        brought = t - back >= begin
        given = x + (t - back).to(tl.int64)[:, None] * x_stride + c
        value = tl.load(given, mask=here & brought[:, None], other=0.0).to(tl.float32)
        kept = own & (position >= back) & (t - back < begin)
        at = tl.where(kept, position - back, 0)
        page = tl.load(table + at // PAGE_SIZE, mask=kept, other=0).to(tl.int64)
        slot = slots + (page * page_stride + at % PAGE_SIZE * WIDTH)[:, None] + c
        past = tl.load(slot, mask=here & kept[:, None], other=0.0).to(tl.float32)
        share = tl.load(weight + c * KERNEL + j, mask=c < WIDTH, other=0.0)
        total += tl.where(brought[:, None], value, past) * share
    if BIASED:
        total += tl.load(bias + c, mask=c < WIDTH, other=0.0)
    if SILU:
        total = total / (1 + tl.exp(tl.minimum(-total, 88.0)))  # exp(88) is finite, exp(89) not
    row = t.to(tl.int64)[:, None]
    tl.store(out + row * out_stride + c, total.to(out.dtype.element_ty), mask=here)
    page = tl.load(table + position // PAGE_SIZE, mask=own, other=0).to(tl.int64)
    slot = slots + (page * page_stride + position % PAGE_SIZE * WIDTH)[:, None] + c
    tl.store(slot, tl.load(x + row * x_stride + c, mask=here, other=0.0), mask=here)


def convolve(
    plan: StatePlan,
    layer: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: StateActivation,
    out: Tensor,
) -> None:
    """See `kvrt.spi.Recurrence.convolve`: x and out are [tokens, layout.width] in the dtype of the
    pages, weight is float32 [layout.width, kernel], bias float32 [layout.width]."""
    tokens, width = x.shape
    if tokens:
        grid = (triton.cdiv(tokens, TOKENS), triton.cdiv(width, CHANNELS))
        convolve_kernel[grid](
            x,
            weight,
            bias,
            out,
            plan.base(layer),
            plan.sequences,
            *plan.tables,
            x.stride(0),
            out.stride(0),
            plan.layout.page_stride,
            plan.columns,
            tokens,
            KERNEL=weight.shape[1],
            WIDTH=width,
            PAGE_SIZE=plan.layout.page_size,
            BIASED=bias is not None,
            SILU=activation == "silu",
            BLOCK_T=TOKENS,
            BLOCK_C=CHANNELS,
            # Each operation is rounded, as the operator says.
            **options(warps=4) | {"enable_fp_fusion": False},
        )
