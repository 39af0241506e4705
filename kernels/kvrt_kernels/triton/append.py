"""Storing keys and values in their pages, alone or with the head norm and rotation before it.

    norm      x * weight / sqrt(mean(x^2) + eps)                              over head_dim
    rotation  (x[d], x[d + n]) -> (x[d] c - x[d + n] s, x[d + n] c + x[d] s)      0 <= d < n

with n = rotary_dim / 2 and c, s the token's rows of cos and sin. A head is three parts, its first n
elements, the next n, and the rest, so that one thread has both elements of a pair that is rotated
in place.
"""

import triton
import triton.language as tl
from torch import Tensor

from kvrt.spi import HeadNorm, Rotation
from kvrt_kernels.triton.configs import options
from kvrt_kernels.triton.kept import scaled_by_token, slot_stride
from kvrt_kernels.triton.plan import Plan

TINY: tl.constexpr = tl.constexpr(2.0**-100)
"""Numbers below it are kept as 0."""
BLOCK_H = 8  # heads of one program: 1024 elements of a head size of 128, 8 for each of 128 threads


@triton.jit
def _prepared(
    x,
    weight,
    c,
    s,
    eps,
    heads,
    n,
    rest,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    NORM: tl.constexpr,
    ROTATE: tl.constexpr,
):
    """The three parts of heads that begin at x [BLOCK_H], normed and rotated, in their dtype."""
    first_mask = heads[:, None] & (n < HALF)[None, :]
    rest_mask = heads[:, None] & (rest < HEAD_DIM)[None, :]
    a = tl.load(x[:, None] + n[None, :], mask=first_mask, other=0.0).to(tl.float32)
    b = tl.load(x[:, None] + (HALF + n)[None, :], mask=first_mask, other=0.0).to(tl.float32)
    z = tl.load(x[:, None] + rest[None, :], mask=rest_mask, other=0.0).to(tl.float32)
    if NORM or ROTATE:
        # Where there are more threads than elements, several read the same one and one stores it:
        # not before all have read.
        tl.debug_barrier()
    if NORM:
        squares = tl.sum(a * a, 1) + tl.sum(b * b, 1) + tl.sum(z * z, 1)
        factor = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
        a = a * factor * tl.load(weight + n, mask=n < HALF, other=0.0)[None, :]
        b = b * factor * tl.load(weight + HALF + n, mask=n < HALF, other=0.0)[None, :]
        z = z * factor * tl.load(weight + rest, mask=rest < HEAD_DIM, other=0.0)[None, :]
    if ROTATE:
        turned = a * c[None, :] - b * s[None, :]
        b = b * c[None, :] + a * s[None, :]
        a = turned
    dtype = x.dtype.element_ty
    return a.to(dtype), b.to(dtype), z.to(dtype)


@triton.jit
def _store(
    x, a, b, z, heads, n, rest, TYPE: tl.constexpr, HEAD_DIM: tl.constexpr, HALF: tl.constexpr
):
    first_mask = heads[:, None] & (n < HALF)[None, :]
    rest_mask = heads[:, None] & (rest < HEAD_DIM)[None, :]
    tl.store(x[:, None] + n[None, :], a.to(TYPE), mask=first_mask)
    tl.store(x[:, None] + (HALF + n)[None, :], b.to(TYPE), mask=first_mask)
    tl.store(x[:, None] + rest[None, :], z.to(TYPE), mask=rest_mask)


@triton.jit
def _divided(x, extreme, scale, finite):
    """Codes of x [..., elements], still to be rounded, and what to keep as their scale [..., 1].

    See `KVLayout`.
    """
    live = finite & (tl.abs(extreme) >= TINY)
    codes = tl.div_rn(x, tl.where(live, scale, 1.0) + tl.zeros_like(x))
    codes = tl.where(live, codes, 0.0)
    return codes, tl.where(finite, tl.where(live, scale, 0.0), float("nan"))


@triton.jit
def _whole(x):
    """Numbers below 2^22, rounded to even: adding 1.5 * 2^23 leaves no room for fractions."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _store_codes(
    x,
    blocks,
    slot,
    heads,
    KV: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Keep the heads that begin at x [BLOCK_H] in one slot of `blocks` [BLOCK_H]."""
    SLOT: tl.constexpr = slot_stride(KV, HEAD_DIM)
    if scaled_by_token(KV):
        LARGEST: tl.constexpr = 127.0 if tl.int8 == KV else 448.0
        d = tl.arange(0, BLOCK_D)
        mask = heads[:, None] & (d < HEAD_DIM)[None, :]
        numbers = tl.load(x[:, None] + d[None, :], mask=mask, other=0.0).to(tl.float32)
        finite = tl.sum(numbers * 0.0, 1, keep_dims=True) == 0.0
        largest = tl.max(tl.abs(numbers), 1, keep_dims=True)
        scale = tl.div_rn(largest, tl.zeros_like(largest) + LARGEST)
        codes, kept = _divided(numbers, largest, scale, finite)
        if tl.int8 == KV:
            codes = _whole(codes)
        tl.store(blocks[:, None] + slot * SLOT + d[None, :], codes.to(KV), mask=mask)
        at = (blocks + PAGE_SIZE * SLOT + slot * 4).to(tl.pointer_type(tl.float32), bitcast=True)
        tl.store(at[:, None], kept, mask=heads[:, None])
    else:
        g = tl.arange(0, BLOCK_D // 32)
        low = 32 * g[:, None] + tl.arange(0, 16)[None, :]  # [groups, elements]
        here = heads[:, None, None]
        there = here & (low < HEAD_DIM)[None, :, :]
        a = tl.load(x[:, None, None] + low[None, :, :], mask=there, other=0.0).to(tl.float32)
        there = here & (low + 16 < HEAD_DIM)[None, :, :]
        b = tl.load(x[:, None, None] + low[None, :, :] + 16, mask=there, other=0.0).to(tl.float32)
        finite = tl.sum((a + b) * 0.0, 2, keep_dims=True) == 0.0
        high = tl.maximum(tl.max(a, 2, keep_dims=True), tl.max(b, 2, keep_dims=True))
        least = tl.minimum(tl.min(a, 2, keep_dims=True), tl.min(b, 2, keep_dims=True))
        extreme = tl.where(high > -least, high, least)
        scale = (extreme * -0.125).to(tl.bfloat16).to(tl.float32)
        a, kept = _divided(a, extreme, scale, finite)
        b, kept = _divided(b, extreme, scale, finite)
        a = (tl.minimum(tl.maximum(_whole(a), -8.0), 7.0) + 8.0).to(tl.uint8)
        b = (tl.minimum(tl.maximum(_whole(b), -8.0), 7.0) + 8.0).to(tl.uint8)
        byte = blocks[:, None, None] + slot * SLOT + (low - 16 * g[:, None])[None, :, :]
        exists = here & (32 * g < HEAD_DIM)[None, :, None]
        tl.store(byte, a | (b << 4), mask=exists & (low >= 0)[None, :, :])
        at = blocks[:, None] + PAGE_SIZE * SLOT + (g * PAGE_SIZE + slot)[None, :] * 2
        at = at.to(tl.pointer_type(tl.bfloat16), bitcast=True)
        tl.store(at[:, :, None], kept.to(tl.bfloat16), mask=exists)


@triton.jit(do_not_specialize_on_alignment=["slots"])
def append_kernel(
    q,
    k,
    v,
    kv,
    slots,
    cos,
    sin,
    q_weight,
    k_weight,
    q_stride,
    k_stride,
    v_stride,
    page_stride,
    head_stride,
    v_offset,
    eps,
    KV: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    SHARED: tl.constexpr,
    HALF: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    NORM: tl.constexpr,
    ROTATE: tl.constexpr,
):
    """BLOCK_H heads of one token: of q (HEADS of them, 0 if q stays as it is), or of k and v.

    Grid: [tokens, blocks of q's heads + blocks of k's]. `slots` is int32 [tokens, 2]: the page of
    each token and the place in it.
    """
    token = tl.program_id(0).to(tl.int64)
    page = tl.load(slots + 2 * token).to(tl.int64)
    place = tl.load(slots + 2 * token + 1)
    n = tl.arange(0, BLOCK_HALF)
    rest = 2 * HALF + tl.arange(0, BLOCK_REST)
    c = tl.zeros([BLOCK_HALF], tl.float32)
    s = c
    if ROTATE:
        angle = token * HALF + n
        c = tl.load(cos + angle, mask=n < HALF, other=0.0)
        s = tl.load(sin + angle, mask=n < HALF, other=0.0)
    block = tl.program_id(1)
    Q_BLOCKS: tl.constexpr = (HEADS + BLOCK_H - 1) // BLOCK_H
    if block < Q_BLOCKS:
        head = block * BLOCK_H + tl.arange(0, BLOCK_H)
        there = head < HEADS
        x = q + token * q_stride + head * HEAD_DIM
        a, b, z = _prepared(x, q_weight, c, s, eps, there, n, rest, HEAD_DIM, HALF, NORM, ROTATE)
        _store(x, a, b, z, there, n, rest, q.dtype.element_ty, HEAD_DIM, HALF)
    else:
        head = (block - Q_BLOCKS) * BLOCK_H + tl.arange(0, BLOCK_H)
        there = head < KV_HEADS
        blocks = kv.to(tl.pointer_type(KV)) + page * page_stride + head.to(tl.int64) * head_stride
        CODES: tl.constexpr = scaled_by_token(KV) or tl.uint8 == KV
        x = k + token * k_stride + head * HEAD_DIM
        a, b, z = _prepared(x, k_weight, c, s, eps, there, n, rest, HEAD_DIM, HALF, NORM, ROTATE)
        if NORM or ROTATE:
            _store(x, a, b, z, there, n, rest, k.dtype.element_ty, HEAD_DIM, HALF)
        if CODES:
            tl.debug_barrier()  # what was stored in place is read by other threads
            _store_codes(x, blocks, place, there, KV, HEAD_DIM, PAGE_SIZE, BLOCK_D)
        else:
            _store(blocks + place * HEAD_DIM, a, b, z, there, n, rest, KV, HEAD_DIM, HALF)
        x = v + token * v_stride + head * VALUE_DIM
        blocks += v_offset
        if CODES and not SHARED:
            _store_codes(x, blocks, place, there, KV, VALUE_DIM, PAGE_SIZE, BLOCK_V)
        elif not SHARED:
            d = tl.arange(0, BLOCK_V)
            mask = there[:, None] & (d < VALUE_DIM)[None, :]
            values = tl.load(x[:, None] + d[None, :], mask=mask, other=0.0)
            slots_of_v = blocks + place * VALUE_DIM
            tl.store(slots_of_v[:, None] + d[None, :], values.to(KV), mask=mask)


def append(plan: Plan, layer: int, k: Tensor, v: Tensor) -> None:
    """Store k and v in their slots, rounded to nearest even; see `kvrt.spi.PagedAttention`."""
    _launch(plan, layer, k, 0, k, v, None, None)


def rotate_append(
    plan: Plan,
    layer: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rotation: Rotation | None,
    norm: HeadNorm | None,
) -> None:
    """Norm and rotate q and k in place, then store k and v; see `kvrt.spi.DenseOps`."""
    heads = 0 if rotation is None and norm is None else q.shape[1]
    _launch(plan, layer, q, heads, k, v, rotation, norm)


def _launch(
    plan: Plan,
    layer: int,
    q: Tensor,
    heads: int,
    k: Tensor,
    v: Tensor,
    rotation: Rotation | None,
    norm: HeadNorm | None,
) -> None:
    layout = plan.layout
    half = layout.head_dim // 2 if rotation is None else rotation.cos.shape[1]
    blocks = triton.cdiv(heads, BLOCK_H) + triton.cdiv(layout.kv_heads, BLOCK_H)
    if not plan.tokens:
        return
    append_kernel[(plan.tokens, blocks)](
        q,
        k,
        v,
        plan.base(layer),
        plan.slots,
        None if rotation is None else rotation.cos,
        None if rotation is None else rotation.sin,
        None if norm is None else norm.q,
        None if norm is None else norm.k,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        layout.page_stride,
        layout.head_stride,
        layout.v_offset,
        0.0 if norm is None else norm.eps,
        KV=plan.dtype,
        HEADS=heads,
        KV_HEADS=layout.kv_heads,
        HEAD_DIM=layout.head_dim,
        VALUE_DIM=layout.value_dim,
        SHARED=layout.shared,
        HALF=half,
        PAGE_SIZE=layout.page_size,
        BLOCK_H=BLOCK_H,
        BLOCK_HALF=triton.next_power_of_2(half),
        BLOCK_REST=triton.next_power_of_2(max(1, layout.head_dim - 2 * half)),
        BLOCK_D=max(32, triton.next_power_of_2(layout.head_dim)),
        BLOCK_V=max(32, triton.next_power_of_2(layout.value_dim)),
        NORM=norm is not None,
        ROTATE=rotation is not None,
        **options(warps=4),
    )
