"""Attention of a tile of query rows over a range of a sequence's tokens.

Softmax is kept as a running maximum, sum and weighted sum of values (Milakov & Gimelshein 2018,
arXiv 1805.02867; Dao et al. 2022, arXiv 2205.14135), in base 2. Blocks of tokens begin at
multiples of BLOCK_N whatever the range, so that the order of a row's additions depends on absolute
positions only.

Keys and values that are codes in int8 or fp8 are multiplied as codes: a token's scores, and its
weights, are multiplied by its scales instead.

Scores of hidden tokens are -inf, and their keys and values are not loaded: not from beyond the
context, not from before every row's window unless they are sinks, and not from a page that holds
none of them.
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
    proper,
    gap,
    end,
    low,
    high,
    window,
    sinks,
    scale,
    softcap,
    DOT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    SHARED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    SINKS: tl.constexpr,
    CAPPED: tl.constexpr,
    TREES: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Blocks ``begin : end`` of tokens; without MASKED every row sees every token of them.

    With SINKS those before `proper` stand for blocks of sinks, which lie `gap` tokens before.
    """
    n = tl.arange(0, BLOCK_N)
    KV: tl.constexpr = keys.dtype.element_ty
    SLOT: tl.constexpr = slot_stride(KV, HEAD_DIM)
    VALUES: tl.constexpr = HEAD_DIM if SHARED else VALUE_DIM  # as which they are kept
    VALUE_SLOT: tl.constexpr = slot_stride(KV, VALUES)
    for at in range(begin, end, BLOCK_N):
        first = at
        if SINKS:
            first = tl.where(at < proper, at - gap, at)
        token = first + n
        there = token >= low
        if SINKS:
            there = there | (token < sinks)
        there = there & (token < high)
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
        key = page * page_stride + slot % PAGE_SIZE * SLOT
        of_keys = scales_at(keys, page * page_stride, slot % PAGE_SIZE, HEAD_DIM, PAGE_SIZE)
        of_values = scales_at(values, page * page_stride, slot % PAGE_SIZE, VALUES, PAGE_SIZE)
        score = _scores(
            q,
            keys + key,
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
            seen = (token < high)[None, :]
            if WINDOWED:
                near = token[None, :] > position[:, None] - window
                if SINKS:
                    near = near | (token < sinks)[None, :]
                seen = near & seen
            if CAUSAL:
                seen = (token[None, :] <= position[:, None]) & seen
            score = tl.where(seen, score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        base = higher
        if MASKED:  # of a row that has seen nothing yet, 0 stands in for -inf - -inf
            base = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp2(score - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(weight, 1)
        if scaled_by_token(KV):
            weight = weight * per_token(of_values, there, MASKED)[None, :]
        d = tl.arange(0, BLOCK_V)
        PADDED: tl.constexpr = VALUE_DIM != BLOCK_V
        value = page * page_stride + slot % PAGE_SIZE * VALUE_SLOT
        v = elements(values + value, of_values, there, d, VALUE_DIM, PAGE_SIZE, PADDED, MASKED)
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
    sink_begin,
    sink_end,
    begin,
    end,
    low,
    high,
    window,
    sinks,
    scale,
    softcap,
    DOT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    SHARED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    SINKS: tl.constexpr,
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
        sink_begin: a multiple of BLOCK_N; blocks from here to `sink_end` are read first, if SINKS.
        begin: a multiple of BLOCK_N, behind those; blocks from here on are read.
        end: tokens from here on are not.
        low: the first token that any row sees, but for sinks.
        high: one more than the last token that any row sees, at most the context.
        window: rows see this many tokens, if WINDOWED.
        sinks: and this many first ones, if SINKS, which needs WINDOWED.
        PEELED: blocks that every row sees in full have a loop of their own, without masks. It
            saves time where there are many rows, and takes registers.

    Returns:
        The normalised values, float32 [BLOCK_M, BLOCK_V], and the base 2 logarithm of the sum of
        the exponentials, float32 [BLOCK_M]: 0 and -inf for a row that sees none of the tokens.
    """
    sums = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    values = kv + v_offset
    first = begin
    gap = 0
    if SINKS:  # in the same loop: one of their own would take registers
        first = begin - tl.cdiv(tl.maximum(0, sink_end - sink_begin), BLOCK_N) * BLOCK_N
        gap = first - sink_begin
        end = tl.maximum(begin, end)
    seen_by_all = first
    if PEELED and not WINDOWED:
        by_all = tl.minimum(first_position + 1, end) if CAUSAL else end
        seen_by_all = tl.maximum(begin, by_all // BLOCK_N * BLOCK_N)
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
            begin,
            0,
            seen_by_all,
            low,
            high,
            window,
            sinks,
            scale,
            softcap,
            DOT,
            HEAD_DIM,
            VALUE_DIM,
            SHARED,
            PAGE_SIZE,
            BLOCK_M,
            BLOCK_N,
            BLOCK_D,
            BLOCK_V,
            CHUNK,
            CAUSAL,
            WINDOWED,
            SINKS,
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
        begin,
        gap,
        end,
        low,
        high,
        window,
        sinks,
        scale,
        softcap,
        DOT,
        HEAD_DIM,
        VALUE_DIM,
        SHARED,
        PAGE_SIZE,
        BLOCK_M,
        BLOCK_N,
        BLOCK_D,
        BLOCK_V,
        CHUNK,
        CAUSAL,
        WINDOWED,
        SINKS,
        CAPPED,
        TREES,
        True,
    )
    some = total > 0
    safe = tl.where(some, total, 1.0)
    return sums / safe[:, None], tl.where(some, top + tl.log2(safe), float("-inf"))


@triton.jit
def beside_sinks(x, log, logits, head, valid):
    """Values that `attend` has normalised, with a sink's logit in the denominator as well."""
    sink = tl.load(logits + head, mask=valid, other=0.0) * LOG2_E
    return x / (1 + share_of_sink(sink, log))[:, None]


@triton.jit
def share_of_sink(sink, log):
    """A sink's exponential, as a multiple of that of `log`: what is beyond 2^126 is 2^126."""
    return tl.exp2(tl.minimum(sink - log, 126.0))
