"""Products of each expert with the tokens that chose it.

A *slot* is one choice of one token: token ``slot // chosen``. Results are in the order of slots.

    few tokens      a program has one slot, and asks nothing about others
    many            slots lie by experts, and a program has some of one expert's:

        chosen   [3, 0], [3, 1], [0, 3]        order     1  4  3  0  2  5
        experts   0  1  3                      tiles     (0, 0, 2)  (1, 2, 1)  (3, 3, 3)

Where a tile is in the list of tiles is known from how many slots are of experts before its own, if
each expert has as many places as it may need: so the host is asked nothing, and the grid is the
same for all choices.
"""

import triton
import triton.language as tl

from kvrt_kernels.triton.product import span_of

TILE: tl.constexpr = tl.constexpr(3)
"""Of a tile: its expert, the place of its first slot in the order, and how many slots it has."""

CHOICE = ["chosen", "tiles", "order"]


@triton.jit(do_not_specialize=["slots"])
def arrange_kernel(chosen, tiles, order, slots, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr):
    """Order the slots of one expert, and list its tiles of BLOCK_M slots. Grid: [experts].

    Args:
        chosen: int32 [slots].
        tiles: int32 [slots // BLOCK_M + experts, TILE], written; some have no slots.
        order: int32 [slots], written.
    """
    expert = tl.program_id(0)
    before, own = 0, 0
    for first in range(0, slots, BLOCK):
        slot = first + tl.arange(0, BLOCK)
        other = tl.load(chosen + slot, mask=slot < slots, other=1 << 30)
        before += tl.sum((other < expert).to(tl.int32), 0)
        own += tl.sum((other == expert).to(tl.int32), 0)
    tile = before // BLOCK_M + expert
    for i in range(tile, (before + own) // BLOCK_M + expert + 1):
        done = (i - tile) * BLOCK_M
        tl.store(tiles + i * TILE, expert)
        tl.store(tiles + i * TILE + 1, before + done)
        tl.store(tiles + i * TILE + 2, tl.minimum(BLOCK_M, own - done))
    for first in range(0, slots, BLOCK):
        slot = first + tl.arange(0, BLOCK)
        mine = (tl.load(chosen + slot, mask=slot < slots, other=1 << 30) == expert).to(tl.int32)
        tl.store(order + before + tl.cumsum(mine, 0) - 1, slot, mask=mine > 0)
        before += tl.sum(mine, 0)


@triton.jit
def _slots(chosen, tiles, order, SORTED: tl.constexpr, BLOCK_M: tl.constexpr):
    """A program's expert, how many slots of it it has, and which."""
    tile, m = tl.program_id(1), tl.arange(0, BLOCK_M)
    if SORTED:
        expert = tl.load(tiles + tile * TILE)
        first = tl.load(tiles + tile * TILE + 1)
        count = tl.load(tiles + tile * TILE + 2)
        slot = tl.load(order + first + m, mask=m < count, other=0)
    else:
        expert = tl.load(chosen + tile)
        count = expert * 0 + 1
        slot = tile + tl.zeros([BLOCK_M], tl.int32)
    return expert, count, slot


@triton.jit
def _store(
    total,
    bias,
    out,
    bias_stride,
    out_stride,
    expert,
    slot,
    count,
    n,
    features,
    BIASED: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    if BIASED:
        at = bias + expert.to(tl.int64) * bias_stride + n
        total += tl.load(at, mask=n < features, other=0.0)[:, None]
    at = out + (slot.to(tl.int64) * out_stride)[None, :] + n[:, None]
    mask = (n < features)[:, None] & (tl.arange(0, BLOCK_M) < count)[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize_on_alignment=CHOICE)
def floats_kernel(
    x,
    weight,
    bias,
    out,
    chosen,
    tiles,
    order,
    x_stride,
    bias_stride,
    out_stride,
    features,
    width,
    EACH: tl.constexpr,
    SORTED: tl.constexpr,
    DOT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN: tl.constexpr,
    BIASED: tl.constexpr,
):
    """BLOCK_N features of BLOCK_M slots. Grid: [features, tiles or slots].

    Weights are the first operand, features its rows, as in `product`. A slot's row of x is that of
    ``slot // EACH``.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    expert, count, slot = _slots(chosen, tiles, order, SORTED, BLOCK_M)
    if count > 0:
        rows = weight + (expert.to(tl.int64) * features + tl.minimum(n, features - 1)) * width
        given = x + (slot // EACH).to(tl.int64) * x_stride
        total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for first in range(0, width, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            if EVEN:
                number = tl.load(rows[:, None] + k[None, :])
                some = tl.load(given[None, :] + k[:, None])
            else:
                number = tl.load(rows[:, None] + k[None, :], mask=(k < width)[None, :], other=0.0)
                some = tl.load(given[None, :] + k[:, None], mask=(k < width)[:, None], other=0.0)
            total = tl.dot(number.to(DOT), some.to(DOT), total, input_precision="ieee")
        _store(total, bias, out, bias_stride, out_stride, expert, slot, count, n, features,
               BIASED, BLOCK_M)  # fmt: skip


@triton.jit(do_not_specialize=["begin", "end"], do_not_specialize_on_alignment=CHOICE)
def codes_kernel(
    x,
    data,
    table,
    bias,
    out,
    chosen,
    tiles,
    order,
    x_stride,
    bias_stride,
    out_stride,
    features,
    begin,
    end,
    distance,
    width,
    plane,
    steps,
    scales_at,
    factors_at,
    offsets_at,
    offset_factors_at,
    row_bytes,
    HOW: tl.constexpr,
    EACH: tl.constexpr,
    SORTED: tl.constexpr,
    DOT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    SPAN: tl.constexpr,
    EVEN: tl.constexpr,
    BIASED: tl.constexpr,
):
    """The same of packed weights, for experts from `begin` to before `end`: the matrix of the first
    begins at `data`, that of each other `distance` bytes behind the one before."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    expert, count, slot = _slots(chosen, tiles, order, SORTED, BLOCK_M)
    if (count > 0) & (expert >= begin) & (expert < end):
        matrix = data + (expert - begin).to(tl.int64) * distance
        rows = matrix + tl.minimum(n, features - 1).to(tl.int64) * row_bytes
        given = x + (slot // EACH).to(tl.int64) * x_stride
        STEPS: tl.constexpr = SPAN // (HOW.step * HOW.piece)
        total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for span in range(tl.cdiv(steps, STEPS)):
            last = tl.minimum(steps, (span + 1) * STEPS)
            total += span_of(
                rows, table, given, width, plane, span * STEPS, last,
                scales_at, factors_at, offsets_at, offset_factors_at,
                HOW, DOT, BLOCK_N, BLOCK_M, EVEN,
            )  # fmt: skip
        _store(total, bias, out, bias_stride, out_stride, expert, slot, count, n, features,
               BIASED, BLOCK_M)  # fmt: skip


@triton.jit
def add_chosen_kernel(
    results,
    weights,
    residual,
    out,
    features,
    CHOSEN: tl.constexpr,
    BLOCK: tl.constexpr,
    ADDED: tl.constexpr,
):
    """BLOCK features of a token: the sum of what its experts made, in the order of its choice.

    Grid: [tokens, features]. `results` is [slots, features].
    """
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = n < features
    slot = token * CHOSEN
    made = tl.load(results + slot * features + n, mask=mask, other=0.0).to(tl.float32)
    total = made * tl.load(weights + slot)
    for _ in range(1, CHOSEN):
        slot += 1
        made = tl.load(results + slot * features + n, mask=mask, other=0.0).to(tl.float32)
        total += made * tl.load(weights + slot)
    at = token * features + n
    if ADDED:
        total += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)
