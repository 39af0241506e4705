"""What the attention kernels share: a tile of query rows against a range of a sequence's tokens.

    work        one sequence of a step, as the host describes it     int64 [sequences + 1, COLUMNS]
    rows        the query tokens of one sequence x the query heads of one KV head, flattened, so
                that a few tokens fill the rows of a matrix instruction

                row    0     1     2     3     4     5  ...             group = 4 query heads
                token  0     0     0     0     1     1  ...
                head   4h    4h+1  4h+2  4h+3  4h    4h+1 ...

Softmax is kept as a running maximum, sum and weighted sum of values (Milakov & Gimelshein 2018,
arXiv 1805.02867; Dao et al. 2022, arXiv 2205.14135), in base 2. Blocks of tokens begin at
multiples of BLOCK_N whatever the range, so that the order of a row's additions depends on absolute
positions only.

A branch of drafts (`kvrt_kernels.tree`) is a sequence of its own, whose tokens from some position
on, its trunk, lie in other slots than those of their positions.

Keys and values that are codes with scales (`kvrt.spi.KVLayout`) are multiplied as codes in int8: a
token's scores, and its weights, are multiplied by its scales instead. In int4 each group of a head
has its own scale, and codes are multiplied by it when they are read.

Scores of hidden tokens are -inf, and their keys and values are not loaded: not from beyond the
context, not from before every row's window, and not from a page that holds neither.
"""

import triton
import triton.language as tl

PAGES: tl.constexpr = tl.constexpr(0)
"""Address of the sequence's row of the page table (int32)."""
ROW: tl.constexpr = tl.constexpr(1)
"""First of its rows of q and out."""
QUERIES: tl.constexpr = tl.constexpr(2)
"""How many query tokens it brings."""
CONTEXT: tl.constexpr = tl.constexpr(3)
"""Its length, query tokens included."""
START: tl.constexpr = tl.constexpr(4)
"""Work before it: segments for decode, query tokens for prefill. The last row has the total."""
TRUNK: tl.constexpr = tl.constexpr(5)
"""Tokens from here on lie in other slots than their positions', if the step has TREES."""
SLOTS: tl.constexpr = tl.constexpr(6)
"""Address of the slot (int32) of the token at position 0, if there was one so far down."""
COLUMNS: tl.constexpr = tl.constexpr(7)

COUNTS = ["sequences", "rows", "window"]
ADDRESSES = ["work", "scratch"]
"""Arguments that change from step to step: not to be compiled for what they happen to be."""

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def first_key(kv, head, head_stride, KV: tl.constexpr, ALIGN: tl.constexpr):
    """The address of a head's first key, as a pointer.

    An address that was a number has lost what the compiler knew of it, and would be read one
    element at a time. ALIGN gives it back: the bytes that it is a multiple of.
    """
    keys = kv.to(tl.pointer_type(KV)) + head.to(tl.int64) * head_stride
    return tl.multiple_of(keys, ALIGN)


@triton.jit
def sequence_of(work, sequences, wanted, GROUP: tl.constexpr, BLOCK_M: tl.constexpr):
    """The last sequence whose work starts at or before `wanted`.

    Sequence i starts at its START; if BLOCK_M is not 0, at tile ``START * GROUP // BLOCK_M + i``,
    which leaves each sequence at least the tiles that its rows need.
    """
    low = 0
    high = sequences
    while high - low > 1:
        middle = (low + high) // 2
        start = tl.load(work + middle * COLUMNS + START)
        if BLOCK_M != 0:
            start = start * GROUP // BLOCK_M + middle
        if start <= wanted:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def load_rows(
    q,
    q_stride,
    row,
    token,
    head,
    valid,
    DOT: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Query rows in DOT, [BLOCK_M, BLOCK_D]; zero where not `valid` and beyond HEAD_DIM.

    With CHUNK, where they begin, [BLOCK_M]; those that are not `valid` begin where the first does.
    """
    at = (row + token).to(tl.int64) * q_stride + head * HEAD_DIM
    d = tl.arange(0, BLOCK_D)
    mask = valid[:, None]
    if HEAD_DIM != BLOCK_D:
        mask = mask & (d < HEAD_DIM)[None, :]
    if CHUNK == 0:
        rows = tl.load(q + at[:, None] + d[None, :], mask=mask, other=0.0).to(DOT)
    else:
        rows = q + tl.where(valid, at, row * q_stride)
    return rows


@triton.jit
def store_rows(
    out, out_stride, row, token, head, valid, x, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr
):
    """The counterpart of `load_rows`."""
    d = tl.arange(0, BLOCK_D)
    at = (row + token).to(tl.int64) * out_stride + head * HEAD_DIM
    mask = valid[:, None]
    if HEAD_DIM != BLOCK_D:
        mask = mask & (d < HEAD_DIM)[None, :]
    tl.store(out + at[:, None] + d[None, :], x.to(out.dtype.element_ty), mask=mask)


@triton.jit
def slot_stride(KV: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Items from one slot of a block to the next."""
    return (HEAD_DIM + 31) // 32 * 16 if tl.uint8 == KV else HEAD_DIM


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
        keys = _numbers(k, scales, token_mask, d, HEAD_DIM, PAGE_SIZE, PADDED, MASKED)
        score = tl.dot(q, tl.trans(keys.to(DOT)), input_precision="ieee")
    else:
        score = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for first in range(0, BLOCK_D, CHUNK):
            d = first + tl.arange(0, CHUNK)
            rows = _load(q, token_mask, d, HEAD_DIM, PADDED, False).to(DOT)
            keys = _numbers(k, scales, token_mask, d, HEAD_DIM, PAGE_SIZE, PADDED, MASKED).to(DOT)
            score = tl.dot(rows, tl.trans(keys), score, input_precision="ieee")
    return score


@triton.jit
def _load(x, token_mask, d, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr, MASKED: tl.constexpr):
    """The elements d of the vectors that begin at x; zero beyond HEAD_DIM and where masked."""
    mask = None
    if MASKED and PADDED:
        mask = token_mask[:, None] & (d < HEAD_DIM)[None, :]
    elif MASKED:
        mask = token_mask[:, None]
    elif PADDED:
        mask = (d < HEAD_DIM)[None, :]
    at = x[:, None] + d[None, :]
    return tl.load(at, mask=mask, other=0.0) if MASKED or PADDED else tl.load(at)


@triton.jit
def _scales(blocks, page, slot, HEAD_DIM: tl.constexpr, PAGE_SIZE: tl.constexpr):
    """Where the first scales of slots are, if codes are kept: `blocks` is that of page 0."""
    KV: tl.constexpr = blocks.dtype.element_ty
    at = blocks
    if tl.int8 == KV:
        at = blocks + (page + PAGE_SIZE * slot_stride(KV, HEAD_DIM) + slot * 4)
        at = at.to(tl.pointer_type(tl.float32), bitcast=True)
    elif tl.uint8 == KV:
        at = blocks + (page + PAGE_SIZE * slot_stride(KV, HEAD_DIM) + slot * 2)
        at = at.to(tl.pointer_type(tl.bfloat16), bitcast=True)
    return at


@triton.jit
def _per_token(at, token_mask, MASKED: tl.constexpr):
    return tl.load(at, mask=token_mask, other=0.0) if MASKED else tl.load(at)


@triton.jit
def _numbers(
    x,
    scales,
    token_mask,
    d,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The elements d of the slots that begin at x, zero beyond HEAD_DIM and where masked.

    In int8 they are codes. `scales` are the places of the slots' first scales.
    """
    if x.dtype.element_ty == tl.uint8:
        byte = d // 32 * 16 + d % 16
        high = (d % 32 // 16 * 4).to(tl.uint8)
        mask = None
        if MASKED or PADDED:
            mask = (d < HEAD_DIM)[None, :]
            if MASKED:
                mask = mask & token_mask[:, None]
        at = x[:, None] + byte[None, :]
        kept = scales[:, None] + (d // 32 * PAGE_SIZE)[None, :]
        if MASKED or PADDED:
            codes = tl.load(at, mask=mask, other=0)
            scale = tl.load(kept, mask=mask, other=0.0)
        else:
            codes = tl.load(at)
            scale = tl.load(kept)
        numbers = ((codes >> high[None, :]) & 15).to(tl.float32) - 8.0
        numbers = numbers * scale.to(tl.float32)
    else:
        numbers = _load(x, token_mask, d, HEAD_DIM, PADDED, MASKED)
    return numbers


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
        of_keys = _scales(keys, page * page_stride, slot % PAGE_SIZE, HEAD_DIM, PAGE_SIZE)
        of_values = _scales(values, page * page_stride, slot % PAGE_SIZE, HEAD_DIM, PAGE_SIZE)
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
        if tl.int8 == KV:
            score = score * _per_token(of_keys, there, MASKED)[None, :]
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
        if tl.int8 == KV:
            weight = weight * _per_token(of_values, there, MASKED)[None, :]
        d = tl.arange(0, BLOCK_D)
        PADDED: tl.constexpr = HEAD_DIM != BLOCK_D
        v = _numbers(values + at, of_values, there, d, HEAD_DIM, PAGE_SIZE, PADDED, MASKED)
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
        trunk: see TRUNK, if TREES.
        slots: see SLOTS, if TREES.
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
