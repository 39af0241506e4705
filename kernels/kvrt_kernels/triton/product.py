"""Products with packed weights, and rows of them.

    y[m, n] = sum over runs r of scale[n, r] * sum over k in r of number[n, k] * x[m, k]
              (+ offset[n, r] * sum over k in r of x[m, k])

A run is elements of a row that share a scale, 128 at most. A program multiplies the numbers of
BLOCK_N rows, which every dtype holds, with BLOCK_M tokens, in a matrix instruction whose first
operand they are, and scales what comes out: weights are never rounded.

Sums are of spans of SPAN elements, and those are added in ascending order, for any number of
tokens: by `add_spans_kernel` where each span has a program of its own, in one program otherwise.
"""

import triton
import triton.language as tl

from kvrt_kernels.triton.weights import numbers, of_groups

COUNTS = ["tokens"]
"""Arguments that change from step to step: not to be compiled for what they happen to be."""


@triton.jit(do_not_specialize=COUNTS)
def product_kernel(
    x,
    data,
    table,
    bias,
    residual,
    out,
    x_stride,
    residual_stride,
    out_stride,
    part_stride,
    tokens,
    features,
    width,
    plane,
    steps,
    scales_at,
    factors_at,
    offsets_at,
    offset_factors_at,
    row_bytes,
    HOW: tl.constexpr,
    DOT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    SPAN: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN: tl.constexpr,
    BIASED: tl.constexpr,
    ADDED: tl.constexpr,
):
    """BLOCK_N features of BLOCK_M tokens. Grid: [features, tokens, spans if SPLIT].

    With SPLIT, `out` is float32 [spans, tokens, features], and nothing is added.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = data + tl.minimum(n, features - 1).to(tl.int64) * row_bytes
    given = x + tl.minimum(m, tokens - 1).to(tl.int64) * x_stride
    STEPS: tl.constexpr = SPAN // (HOW.step * HOW.piece)
    first = 0
    last = tl.cdiv(steps, STEPS)
    if SPLIT:
        first = tl.program_id(2)
        last = first + 1
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for span in range(first, last):
        end = tl.minimum(steps, (span + 1) * STEPS)
        total += span_of(
            rows, table, given, width, plane, span * STEPS, end,
            scales_at, factors_at, offsets_at, offset_factors_at,
            HOW, DOT, BLOCK_N, BLOCK_M, EVEN,
        )  # fmt: skip
    token = m.to(tl.int64)
    mask = (n < features)[:, None] & (m < tokens)[None, :]
    if BIASED:
        total += tl.load(bias + n, mask=n < features, other=0.0)[:, None]
    if ADDED:
        at = residual + (token * residual_stride)[None, :] + n[:, None]
        total += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    if SPLIT:
        out += tl.program_id(2).to(tl.int64) * part_stride
    at = out + (token * out_stride)[None, :] + n[:, None]
    tl.store(at, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def span_of(
    rows, table, given, width, plane, first, last,
    scales_at, factors_at, offsets_at, offset_factors_at,
    HOW: tl.constexpr, DOT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """The sum over steps from `first` to before `last`: float32 [BLOCK_N, BLOCK_M]."""
    SIZE: tl.constexpr = HOW.piece
    STEP: tl.constexpr = HOW.step
    RUN: tl.constexpr = HOW.run
    GROUP: tl.constexpr = HOW.group
    SCALE: tl.constexpr = HOW.scale
    OFFSET: tl.constexpr = HOW.offset
    OFFSETS: tl.constexpr = HOW.offset.numbers
    ADDS: tl.constexpr = OFFSETS == "float16" or OFFSETS == "two"
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for step in range(first, last):
        for begin in tl.static_range(0, STEP, RUN):
            element = (step * STEP + begin) * SIZE
            offset = tl.zeros([BLOCK_N], tl.float32)
            if OFFSETS != "none":
                offset = of_groups(rows, offsets_at, offset_factors_at, element, GROUP, OFFSET)
            part = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            sums = tl.zeros([BLOCK_M], tl.float32)
            for i in tl.static_range(RUN):
                k = element + i * SIZE + tl.arange(0, SIZE)
                at = given[None, :] + k[:, None]
                mask = None
                if not EVEN:
                    mask = (k < width)[:, None]
                some = tl.load(at, mask=mask, other=None if EVEN else 0.0)
                number = numbers(rows, table, plane, step, begin + i, HOW)
                if OFFSETS == "zeros":
                    number -= offset[:, None]
                part = tl.dot(number.to(DOT), some.to(DOT), part, input_precision="ieee")
                if ADDS:
                    sums += tl.sum(some.to(tl.float32), 0)
            scale = of_groups(rows, scales_at, factors_at, element, GROUP, SCALE)
            total += scale[:, None] * part
            if ADDS:
                total += offset[:, None] * sums[None, :]
    return total


@triton.jit(do_not_specialize=["spans", *COUNTS])
def add_spans_kernel(
    parts,
    bias,
    residual,
    out,
    residual_stride,
    out_stride,
    tokens,
    features,
    spans,
    BLOCK: tl.constexpr,
    BIASED: tl.constexpr,
    ADDED: tl.constexpr,
):
    """Adds the spans of BLOCK features of one token. Grid: [tokens, features]."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = n < features
    total = tl.zeros([BLOCK], tl.float32)
    at = parts + row * features
    for _ in range(spans):
        total += tl.load(at + n, mask=mask, other=0.0)
        at += tokens.to(tl.int64) * features
    if BIASED:
        total += tl.load(bias + n, mask=mask, other=0.0)
    if ADDED:
        total += tl.load(residual + row * residual_stride + n, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + n, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def rows_kernel(
    data,
    table,
    indices,
    out,
    width,
    plane,
    steps,
    scales_at,
    factors_at,
    offsets_at,
    offset_factors_at,
    row_bytes,
    HOW: tl.constexpr,
    STEPS: tl.constexpr,
):
    """STEPS steps of one row, as `WeightFormat` defines its values. Grid: [rows, steps]."""
    SIZE: tl.constexpr = HOW.piece
    STEP: tl.constexpr = HOW.step
    GROUP: tl.constexpr = HOW.group
    SCALE: tl.constexpr = HOW.scale
    OFFSET: tl.constexpr = HOW.offset
    OFFSETS: tl.constexpr = HOW.offset.numbers
    row = tl.program_id(0).to(tl.int64)
    rows = data + (tl.load(indices + row).to(tl.int64) * row_bytes + tl.zeros([1], tl.int64))
    first = tl.program_id(1) * STEPS
    for step in range(first, tl.minimum(steps, first + STEPS)):
        for piece in tl.static_range(STEP):
            element = (step * STEP + piece) * SIZE
            number = numbers(rows, table, plane, step, piece, HOW)
            offset = tl.zeros([1], tl.float32)
            if OFFSETS != "none":
                offset = of_groups(rows, offsets_at, offset_factors_at, element, GROUP, OFFSET)
            if OFFSETS == "zeros":
                number -= offset[:, None]
            scale = of_groups(rows, scales_at, factors_at, element, GROUP, SCALE)
            number = scale[:, None] * number
            if OFFSETS == "float16" or OFFSETS == "two":
                number += offset[:, None]
            k = element + tl.arange(0, SIZE)[None, :]
            at = out + row * width + k
            tl.store(at, number.to(out.dtype.element_ty), mask=k < width)
