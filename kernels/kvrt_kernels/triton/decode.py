"""Attention of sequences that bring a few tokens: their contexts are split among programs.

    out = sum over segments s of 2^(l_s) o_s / sum over segments of 2^(l_s)

where o_s is attention over segment s alone and l_s the base 2 logarithm of its sum of
exponentials. Segments are SEGMENT absolute positions each, whatever else is in the batch, and
`merge` adds them in one order: a row's bits do not depend on its neighbours (Flash-Decoding, Dao
et al. 2023, with splits of a fixed size rather than a fixed number).

A sequence whose row sees but one segment needs no merging, and its result is written at once.
"""

import triton
import triton.language as tl

from kvrt_kernels.triton.kept import first_key
from kvrt_kernels.triton.tile import LOG2_E, attend, beside_sinks, share_of_sink
from kvrt_kernels.triton.work import (
    ADDRESSES,
    COLUMNS,
    CONTEXT,
    COUNTS,
    PAGES,
    QUERIES,
    ROW,
    SLOTS,
    START,
    TRUNK,
    load_rows,
    sequence_of,
    store_rows,
)


@triton.jit
def _first(low, sink_end, SEGMENT: tl.constexpr):
    """The first segment that any row sees: that of the sinks, if there are any."""
    return tl.where(sink_end > 0, 0, low // SEGMENT)


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=ADDRESSES)
def decode_kernel(
    q,
    out,
    kv,
    work,
    scratch,
    q_stride,
    out_stride,
    page_stride,
    head_stride,
    v_offset,
    sequences,
    rows,
    window,
    sinks,
    sink_logits,
    scale,
    softcap,
    KV: tl.constexpr,
    ALIGN: tl.constexpr,
    DOT: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    SHARED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    SEGMENT: tl.constexpr,
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
):
    """One segment of one sequence, for one KV head and one tile of rows; then the next.

    Grid: [tiles of rows, any number, kv_heads]. The scratch has, for each segment, KV head and
    row, the values [VALUE_DIM] and, behind all of those, the logarithms; both float32.
    """
    head = tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(2).to(tl.int64)
    segments = tl.load(work + sequences * COLUMNS + START).to(tl.int32)
    r = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_V)
    keys = first_key(kv, head, head_stride, KV, ALIGN)
    for item in range(tl.program_id(1), segments, tl.num_programs(1)):
        this = work + sequence_of(work, sequences, item, GROUP, 0) * COLUMNS
        row = tl.load(this + ROW)
        queries = tl.load(this + QUERIES).to(tl.int32)
        context = tl.load(this + CONTEXT).to(tl.int32)
        segment = item - tl.load(this + START).to(tl.int32)
        pages = tl.load(this + PAGES).to(tl.pointer_type(tl.int32))
        trunk = context
        slots = pages
        if TREES:
            trunk = tl.load(this + TRUNK).to(tl.int32)
            slots = tl.load(this + SLOTS).to(tl.pointer_type(tl.int32))
        past = context - queries
        low = 0
        if WINDOWED:
            low = tl.maximum(0, past + 1 - window)
        begin = tl.maximum(segment * SEGMENT, low // BLOCK_N * BLOCK_N)
        sink_end = 0
        if SINKS:
            sink_end = tl.minimum(sinks, low)
            begin = tl.maximum(begin, tl.cdiv(sink_end, BLOCK_N) * BLOCK_N)
        end = tl.minimum((segment + 1) * SEGMENT, context)
        valid = r < queries * GROUP
        some = (begin < end) & (end > low)
        if SINKS:
            some = some | (segment * SEGMENT < sink_end)
        if (tl.program_id(0) * BLOCK_M < queries * GROUP) & some:
            token = r // GROUP
            of_head = head * GROUP + r % GROUP
            x = load_rows(q, q_stride, row, token, of_head, valid, DOT, HEAD_DIM, BLOCK_D, CHUNK)
            x, log = attend(
                x,
                keys,
                pages,
                trunk,
                slots,
                page_stride,
                v_offset,
                past + token,
                past,
                segment * SEGMENT,
                tl.minimum(sink_end, end),
                begin,
                end,
                low,
                end,
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
            if _first(low, sink_end, SEGMENT) == (context - 1) // SEGMENT:
                if sink_logits is not None:
                    x = beside_sinks(x, log, sink_logits, of_head, valid)
                store_rows(out, out_stride, row, token, of_head, valid, x, VALUE_DIM, BLOCK_V)
            else:
                sums = tl.load(scratch).to(tl.pointer_type(tl.float32))
                at = (item * heads + head) * rows + r
                mask = valid[:, None] & (d < VALUE_DIM)[None, :]
                tl.store(sums + at[:, None] * VALUE_DIM + d[None, :], x, mask=mask)
                logs = sums + segments * heads * rows * VALUE_DIM
                tl.store(logs + at, log, mask=valid)


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=ADDRESSES)
def merge_kernel(
    out,
    work,
    scratch,
    out_stride,
    sequences,
    rows,
    window,
    sinks,
    sink_logits,
    GROUP: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    SEGMENT: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_S: tl.constexpr,
    WINDOWED: tl.constexpr,
    SINKS: tl.constexpr,
):
    """One row of one sequence: its segments, BLOCK_S at a time, in ascending order.

    Grid: [rows of one KV head, kv_heads, sequences].
    """
    r = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    heads = tl.num_programs(1)
    this = work + tl.program_id(2) * COLUMNS
    queries = tl.load(this + QUERIES).to(tl.int32)
    context = tl.load(this + CONTEXT).to(tl.int32)
    low = 0
    if WINDOWED:
        low = tl.maximum(0, context - queries + 1 - window)
    sink_end = 0
    if SINKS:
        sink_end = tl.minimum(sinks, low)
    first = _first(low, sink_end, SEGMENT)
    stop = tl.cdiv(context, SEGMENT)
    if (r < queries * GROUP) & (stop - first > 1):
        sums = tl.load(scratch).to(tl.pointer_type(tl.float32))
        segments = tl.load(work + sequences * COLUMNS + START)
        logs = sums + segments * heads * rows * VALUE_DIM
        start = tl.load(this + START)
        d = tl.arange(0, BLOCK_V)
        top = float("-inf")
        total = 0.0
        x = tl.zeros([BLOCK_V], tl.float32)
        for block in range(first // BLOCK_S * BLOCK_S, stop, BLOCK_S):
            s = block + tl.arange(0, BLOCK_S)
            there = (s >= low // SEGMENT) & (s < stop)
            if SINKS:
                there = there | (s < tl.cdiv(sink_end, SEGMENT))
            at = ((start + s) * heads + head) * rows + r
            log = tl.load(logs + at, mask=there, other=float("-inf"))
            mask = there[:, None] & (d < VALUE_DIM)[None, :]
            part = tl.load(sums + at[:, None] * VALUE_DIM + d[None, :], mask=mask, other=0.0)
            higher = tl.maximum(top, tl.max(log, 0))
            base = tl.where(higher == float("-inf"), 0.0, higher)
            weight = tl.exp2(log - base)
            shrink = tl.exp2(top - base)
            total = total * shrink + tl.sum(weight, 0)
            x = x * shrink + tl.sum(part * weight[:, None], 0)
            top = higher
        row = tl.load(this + ROW) + r // GROUP
        of_head = head * GROUP + r % GROUP
        if sink_logits is not None:
            total += share_of_sink(tl.load(sink_logits + of_head) * LOG2_E, top)
        at = row * out_stride + of_head * VALUE_DIM
        tl.store(out + at + d, (x / total).to(out.dtype.element_ty), mask=d < VALUE_DIM)
