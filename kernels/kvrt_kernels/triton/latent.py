"""What latent attention puts around attention: `TritonLatents` is a `kvrt.spi.LatentOps`.

The vendor's library multiplies each head with its matrix, in one call; `rotate` is the rest.
"""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvrt.spi import Rotation
from kvrt_kernels.triton.configs import options

HEADS: Final = 8
"""Of a token, of one program."""


@triton.jit(do_not_specialize=["heads"])
def rotate_kernel(
    x,
    cos,
    sin,
    out,
    x_stride,
    x_head,
    out_stride,
    out_head,
    heads,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,
    MOVED: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """BLOCK_H heads of a token, whose first ``2 * HALF`` elements turn. Grid: [tokens, heads]."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
    given = x + token * x_stride + head * x_head
    to = out + token * out_stride + head * out_head
    if HALF > 0:
        r = tl.arange(0, BLOCK_R)[None, :]
        mask = (head < heads) & (r < HALF)
        c = tl.load(cos + token * HALF + r, mask=r < HALF, other=0.0)
        s = tl.load(sin + token * HALF + r, mask=r < HALF, other=0.0)
        low = tl.load(given + r, mask=mask, other=0.0).to(tl.float32)
        high = tl.load(given + HALF + r, mask=mask, other=0.0).to(tl.float32)
        tl.store(to + r, (low * c - high * s).to(out.dtype.element_ty), mask=mask)
        tl.store(to + HALF + r, (high * c + low * s).to(out.dtype.element_ty), mask=mask)
    if MOVED and SIZE > 2 * HALF:
        d = 2 * HALF + tl.arange(0, BLOCK_D)[None, :]
        mask = (head < heads) & (d < SIZE)
        tl.store(to + d, tl.load(given + d, mask=mask, other=0.0), mask=mask)


class TritonLatents:
    """See `kvrt.spi.LatentOps`. The calls check nothing; `kvrt.wrappers.Checked` has.

    A matrix of another dtype than `x` is converted in each call: keep weights in the compute dtype.
    """

    def by_head(self, x: Tensor, weight: Tensor, out: Tensor) -> None:
        heads_first, each = x.transpose(0, 1), weight.to(x.dtype).transpose(1, 2)
        torch.bmm(heads_first, each, out=out.transpose(0, 1))

    def rotate(self, x: Tensor, rotation: Rotation | None, out: Tensor) -> None:
        tokens, heads, size = x.shape
        moved = out.data_ptr() != x.data_ptr()
        half = 0 if rotation is None else rotation.cos.shape[1]
        if not tokens or not (half or moved):
            return
        rotate_kernel[(tokens, triton.cdiv(heads, HEADS))](
            x,
            None if rotation is None else rotation.cos,
            None if rotation is None else rotation.sin,
            out,
            x.stride(0),
            x.stride(1),
            out.stride(0),
            out.stride(1),
            heads,
            SIZE=size,
            HALF=half,
            MOVED=moved,
            BLOCK_H=HEADS,
            BLOCK_R=triton.next_power_of_2(max(1, half)),
            BLOCK_D=triton.next_power_of_2(max(1, size - 2 * half)),
            **options(warps=4),
        )
