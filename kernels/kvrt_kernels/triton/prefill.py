"""Attention of sequences that bring many tokens: each program takes a tile of their rows.

A program reads all tokens that its rows see, from the first to the last, so nothing is to be
merged.
"""

import triton
import triton.language as tl

from kvrt_kernels.triton.kept import first_key
from kvrt_kernels.triton.tile import attend, beside_sinks
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


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=ADDRESSES)
def prefill_kernel(
    q,
    out,
    kv,
    work,
    q_stride,
    out_stride,
    page_stride,
    head_stride,
    v_offset,
    sequences,
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
    """One tile of BLOCK_M rows of one sequence and KV head.

    Grid: [kv_heads, query tokens * GROUP // BLOCK_M + sequences]. Some tiles at the end of a
    sequence have no rows. The last tiles see most and are started first.
    """
    head = tl.program_id(0).to(tl.int64)
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    index = sequence_of(work, sequences, tile, GROUP, BLOCK_M)
    this = work + index * COLUMNS
    queries = tl.load(this + QUERIES).to(tl.int32)
    start = tl.load(this + START).to(tl.int32)
    first_row = (tile - start * GROUP // BLOCK_M - index) * BLOCK_M
    if first_row < queries * GROUP:
        row = tl.load(this + ROW)
        context = tl.load(this + CONTEXT).to(tl.int32)
        pages = tl.load(this + PAGES).to(tl.pointer_type(tl.int32))
        trunk = context
        slots = pages
        if TREES:
            trunk = tl.load(this + TRUNK).to(tl.int32)
            slots = tl.load(this + SLOTS).to(tl.pointer_type(tl.int32))
        r = first_row + tl.arange(0, BLOCK_M)
        valid = r < queries * GROUP
        token = r // GROUP
        of_head = head * GROUP + r % GROUP
        past = context - queries
        first_position = past + first_row // GROUP
        low = 0
        if WINDOWED:
            low = tl.maximum(0, first_position + 1 - window)
        begin = low // BLOCK_N * BLOCK_N
        sink_end = 0
        if SINKS:
            sink_end = tl.minimum(sinks, low)
            begin = tl.maximum(begin, tl.cdiv(sink_end, BLOCK_N) * BLOCK_N)
        end = context
        if CAUSAL:
            end = tl.minimum(past + (first_row + BLOCK_M - 1) // GROUP + 1, context)
        x = load_rows(q, q_stride, row, token, of_head, valid, DOT, HEAD_DIM, BLOCK_D, CHUNK)
        x, log = attend(
            x,
            first_key(kv, head, head_stride, KV, ALIGN),
            pages,
            trunk,
            slots,
            page_stride,
            v_offset,
            past + token,
            first_position,
            0,
            sink_end,
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
            PEELED,
        )
        if sink_logits is not None:
            x = beside_sinks(x, log, sink_logits, of_head, valid)
        store_rows(out, out_stride, row, token, of_head, valid, x, VALUE_DIM, BLOCK_V)
