"""Which rows a program computes: a step's sequences in a table, and their rows of q and out.

    work        one sequence of a step, as the host describes it     int64 [sequences + 1, COLUMNS]
    rows        the query tokens of one sequence x the query heads of one KV head, flattened, so
                that a few tokens fill the rows of a matrix instruction

                row    0     1     2     3     4     5  ...             group = 4 query heads
                token  0     0     0     0     1     1  ...
                head   4h    4h+1  4h+2  4h+3  4h    4h+1 ...

A branch of drafts (`kvrt_kernels.tree`) is a sequence of its own, whose tokens from some position
on, its trunk, lie in other slots than those of their positions.
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

COUNTS = ["sequences", "rows", "window", "sinks"]
ADDRESSES = ["work", "scratch"]
"""Arguments that change from step to step: not to be compiled for what they happen to be."""


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
    if CHUNK == 0:
        d = tl.arange(0, BLOCK_D)
        mask = valid[:, None]
        if HEAD_DIM != BLOCK_D:
            mask = mask & (d < HEAD_DIM)[None, :]
        rows = tl.load(q + at[:, None] + d[None, :], mask=mask, other=0.0).to(DOT)
    else:
        rows = q + tl.where(valid, at, row * q_stride)
    return rows


@triton.jit
def store_rows(
    out, out_stride, row, token, head, valid, x, VALUE_DIM: tl.constexpr, BLOCK_V: tl.constexpr
):
    """The counterpart of `load_rows`, for values."""
    d = tl.arange(0, BLOCK_V)
    at = (row + token).to(tl.int64) * out_stride + head * VALUE_DIM
    mask = valid[:, None]
    if VALUE_DIM != BLOCK_V:
        mask = mask & (d < VALUE_DIM)[None, :]
    tl.store(out + at[:, None] + d[None, :], x.to(out.dtype.element_ty), mask=mask)
