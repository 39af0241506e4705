"""Attention of a tile of query rows over a range of a sequence's tokens.

Softmax is kept as a running maximum, sum and weighted sum of values (Milakov & Gimelshein 2018,
arXiv 1805.02867; Dao et al. 2022, arXiv 2205.14135), in base 2. Blocks of tokens begin at
multiples of BLOCK_N whatever the range, so that the order of a row's additions depends on absolute
positions only.

Keys and values that are codes in int8 or fp8 are multiplied as codes: a token's scores, and its
weights, are multiplied by its scales instead.

Scores of hidden tokens are -inf, and their keys and values are not loaded: not from beyond the
context, not from before every row's window, and not from a page that holds neither.
"""

import triton
import triton.language as tl

from kvrt_kernels.triton.kept import (
    elements,
    per_token,
    scaled_by_token,
    scales_at,
    slot_stride,
    vectors,
)

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _scores(
    q,
    k,
    scales,
    token_mask,
    DOT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    CHUNK: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
):
    """Products of the rows with the keys that begin at k [BLOCK_N], float32 [BLOCK_M, BLOCK_N].

    Where float32 products are not matrix instructions, a thread that has one score to compute
    holds all that it multiplies in registers: CHUNK elements of a head at a time let it fit.
    """
    PADDED: tl.constexpr = HEAD_DIM != BLOCK_D
    if CHUNK == 0:
        d = tl.arange(0, BLOCK_D)
        keys = elements(k, scales, token_mask, d, HEAD_DIM, PAGE_SIZE, PADDED, MASKED)
        score = tl.dot(q, tl.trans(keys.to(DOT)), input_precision="ieee")
    else:
        score = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for first in range(0, BLOCK_D, CHUNK):
            d = first + tl.arange(0, CHUNK)
            rows = vectors(q, token_mask, d, HEAD_DIM, PADDED, False).to(DOT)
            keys = elements(k, scales, token_mask, d, HEAD_DIM, PAGE_SIZE, PADDED, MASKED).to(DOT)
            score = tl.dot(rows, tl.trans(keys), score, input_precision="ieee")
    return score


@triton.jit
def _blocks(
    sums,
    total,
    top,
    q,
    keys,
    values,
    pages,
    trunk,
    slots,
    page_stride,
    position,
    begin,
    end,
    low,
    high,
    window,
    scale,
    softcap,
    DOT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    TREES: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Blocks ``begin : end`` of tokens; without MASKED every row sees every token of them."""
    n = tl.arange(0, BLOCK_N)
    KV: tl.constexpr = keys.dtype.element_ty
    SLOT: tl.constexpr = slot_stride(KV, HEAD_DIM)
    for first in range(begin, end, BLOCK_N):
        token = first + n
        there = (token >= low) & (token < high)
        slot = token
        if TREES:
            slot = tl.minimum(token, high - 1)
            slot = tl.load(slots + slot, mask=slot >= trunk, other=slot)
            page = tl.load(pages + slot // PAGE_SIZE).to(tl.int64)
        elif PAGE_SIZE % BLOCK_N == 0:
            page = tl.load(pages + first // PAGE_SIZE).to(tl.int64)
        elif MASKED:
            page = tl.load(pages + token // PAGE_SIZE, mask=there, other=0).to(tl.int64)
        else:
            page = tl.load(pages + token // PAGE_SIZE).to(tl.int64)
        at = page * page_stride + slot % PAGE_SIZE * SLOT
        of_keys = scales_at(keys, page * page_stride, slot % PAGE_SIZE, HEAD_DIM, PAGE_SIZE)
        of_values = scales_at(values, page * page_stride, slot % PAGE_SIZE, HEAD_DIM, PAGE_SIZE)
        score = _scores(
            q,
            keys + at,
            of_keys,
            there,
            DOT,
            HEAD_DIM,
            BLOCK_D,
            BLOCK_M,
            BLOCK_N,
            MASKED,
            CHUNK,
            PAGE_SIZE,
        )
        if scaled_by_token(KV):
            score = score * per_token(of_keys, there, MASKED)[None, :]
        if CAPPED:
            # tanh(x) = 1 - 2 / (exp(2 x) + 1), which is right for infinite exponentials as well.
            power = tl.exp2(score * (2 * LOG2_E * scale / softcap))
            score = (softcap * LOG2_E) * (1 - 2 / (power + 1))
        else:
            score = score * (scale * LOG2_E)
        if MASKED:
            seen = token[None, :] <= position[:, None]
            if WINDOWED:
                seen = seen & (token[None, :] > position[:, None] - window)
            score = tl.where(seen & (token < high)[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        base = higher
        if MASKED:  # of a row that has seen nothing yet, 0 stands in for -inf - -inf
            base = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp2(score - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(weight, 1)
        if scaled_by_token(KV):
            weight = weight * per_token(of_values, there, MASKED)[None, :]
        d = tl.arange(0, BLOCK_D)
        PADDED: tl.constexpr = HEAD_DIM != BLOCK_D
        v = elements(values + at, of_values, there, d, HEAD_DIM, PAGE_SIZE, PADDED, MASKED)
        sums = sums * shrink[:, None]
        sums = tl.dot(weight.to(DOT), v.to(DOT), sums, input_precision="ieee")
        top = higher
    return sums, total, top


@triton.jit
def attend(
    q,
    kv,
    pages,
    trunk,
    slots,
    page_stride,
    v_offset,
    position,
    first_position,
    begin,
    end,
    low,
    high,
    window,
    scale,
    softcap,
    DOT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    TREES: tl.constexpr,
    PEELED: tl.constexpr,
):
    """Attention of the rows q (from `load_rows`) over the tokens ``begin : end`` of a sequence.

    Args:
        kv: the layer's and head's first key.
        trunk: see `work.TRUNK`, if TREES.
        slots: see `work.SLOTS`, if TREES.
        position: of each row, [BLOCK_M].
        first_position: the lowest of them.
        begin: a multiple of BLOCK_N; blocks from here on are read.
        end: tokens from here on are not.
        low: the first token that any row sees.
        high: one more than the last token that any row sees, at most the context.
        window: rows see this many tokens, if WINDOWED.
        PEELED: blocks that every row sees in full have a loop of their own, without masks. It
            saves time where there are many rows, and takes registers.

    Returns:
        The normalised values, float32 [BLOCK_M, BLOCK_D], and the base 2 logarithm of the sum of
        the exponentials, float32 [BLOCK_M]: 0 and -inf for a row that sees none of the tokens.
    """
    sums = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    values = kv + v_offset
    seen_by_all = begin
    if PEELED and not WINDOWED:
        seen_by_all = tl.maximum(begin, tl.minimum(first_position + 1, end) // BLOCK_N * BLOCK_N)
        sums, total, top = _blocks(
            sums,
            total,
            top,
            q,
            kv,
            values,
            pages,
            trunk,
            slots,
            page_stride,
            position,
            begin,
            seen_by_all,
            low,
            high,
            window,
            scale,
            softcap,
            DOT,
            HEAD_DIM,
            PAGE_SIZE,
            BLOCK_M,
            BLOCK_N,
            BLOCK_D,
            CHUNK,
            WINDOWED,
            CAPPED,
            TREES,
            False,
        )
    sums, total, top = _blocks(
        sums,
        total,
        top,
        q,
        kv,
        values,
        pages,
        trunk,
        slots,
        page_stride,
        position,
        seen_by_all,
        end,
        low,
        high,
        window,
        scale,
        softcap,
        DOT,
        HEAD_DIM,
        PAGE_SIZE,
        BLOCK_M,
        BLOCK_N,
        BLOCK_D,
        CHUNK,
        WINDOWED,
        CAPPED,
        TREES,
        True,
    )
    some = total > 0
    safe = tl.where(some, total, 1.0)
    return sums / safe[:, None], tl.where(some, top + tl.log2(safe), float("-inf"))
