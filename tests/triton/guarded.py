"""Runs the kernels where everything they must not touch is unmapped; see test_interpreted.py.

python guarded.py LENGTH WINDOW SINKS [too-few-pages]      exits 0, or dies of SIGSEGV
python guarded.py products                                 likewise, of products with packed weights
python guarded.py experts                                  of mixtures of experts
python guarded.py recurrence                               of recurrent layers and their pages

The layout is that of `tests/kernels/guarded.py`: slots of a whole page of the operating system.
"""

import ctypes
import mmap
import sys
from dataclasses import replace

import torch
from kvrt_interpreted import narrow
from kvrt_kernels.triton import TritonAttention, TritonMatrices
from kvrt_kernels.triton.append import rotate_append
from kvrt_kernels.triton.experts import TritonExperts
from kvrt_kernels.triton.gate import gated
from kvrt_kernels.triton.norm import rms_norm
from kvrt_kernels.triton.recurrence import TritonRecurrence

from kvrt.spi import (
    AttentionBatch,
    AttentionParams,
    DeltaRule,
    DType,
    Experts,
    HeadNorm,
    KVLayout,
    Matrices,
    Rotation,
    Router,
    StateBatch,
    StateLayout,
    StateSpaceRule,
)
from kvrt.testing import matrices

OS_PAGE = mmap.PAGESIZE
HEAD_DIM, PAGE_SIZE, PAGES = 64, 128, 12
libc = ctypes.CDLL(None, use_errno=True)


def forbid(address: int) -> None:
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(OS_PAGE), 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")


def at_an_end(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random values, behind which nothing is mapped."""
    values = torch.randn(shape).to(dtype).flatten().view(torch.uint8)
    whole = -(-values.nbytes // OS_PAGE) * OS_PAGE
    memory = torch.frombuffer(mmap.mmap(-1, whole + OS_PAGE), dtype=torch.uint8)
    forbid(memory.data_ptr() + whole)
    place = memory[whole - values.nbytes : whole]
    return place.copy_(values).view(dtype).view(shape)


def guarded(
    dtype: DType, length: int, queries: int, params: AttentionParams, spared: int
) -> AttentionBatch:
    """One sequence; what it does not see is not mapped, nor are its last `spared` pages."""
    kind = getattr(torch, dtype)
    head = PAGE_SIZE * HEAD_DIM
    layout = KVLayout(dtype, 1, 1, HEAD_DIM, PAGE_SIZE, 2 * head, 2 * head, head, head)
    kv = torch.frombuffer(mmap.mmap(-1, PAGES * layout.page_stride * kind.itemsize), dtype=kind)
    kv.normal_()
    used = -(-length // PAGE_SIZE)
    order = [(5 * i + 2) % PAGES for i in range(used)]
    first = max(0, length - queries + 1 - params.window) if params.window else 0
    last = (used - spared) * PAGE_SIZE
    seen = {*range(min(params.sinks, length)), *range(first, min(length, last))}
    keep = {
        (kv.data_ptr() + at * kind.itemsize) // OS_PAGE
        for position in seen
        for part in (0, head)
        for at in [order[position // PAGE_SIZE] * layout.page_stride + part
                   + position % PAGE_SIZE * HEAD_DIM]
    }  # fmt: skip
    begin = kv.data_ptr() // OS_PAGE
    for number in range(begin, begin + kv.nbytes // OS_PAGE):
        if number not in keep:
            forbid(number * OS_PAGE)
    return AttentionBatch(
        kv=kv,
        layout=layout,
        page_table=torch.tensor([order], dtype=torch.int32),
        query_start=torch.tensor([0, queries], dtype=torch.int32),
        context_len=torch.tensor([length], dtype=torch.int32),
    )


def product(name: str, width: int) -> None:
    """Few features, whose last tile has room for more, of few tokens and of some."""
    packed, format = TritonMatrices("sm_90"), matrices.FORMATS[name]
    into = at_an_end(packed.nbytes(format, 5, width), dtype=torch.uint8)
    matrix = packed.pack(format, matrices.random_rows(format, 5, width, 1), width, into)
    rows = packed.rows(matrix, torch.tensor([4, 0]), at_an_end(2, width))
    assert rows.isfinite().all()
    for tokens in (3, 17):
        bias, residual, out = at_an_end(5), at_an_end(tokens, 5), at_an_end(tokens, 5)
        packed.linear(at_an_end(tokens, width), (matrix,), bias, residual, out)
        assert out.isfinite().all()


def experts() -> None:
    """Few features, of few tokens and of some, which choose all experts, the last one, too."""
    ops, router = TritonExperts("sm_90"), Router("softmax", 2)
    floats = Experts(3, 7, at_an_end(3 * 14, 21), at_an_end(3 * 5, 7))
    codes = Experts(3, 32, packed(3, 64, 96), packed(3, 5, 32))
    for those, width in ((floats, 21), (codes, 96)):
        biases = at_an_end(3, 2 * those.width), at_an_end(3, 5)
        those = replace(those, gate_up_bias=biases[0], down_bias=biases[1])
        for tokens in (3, 17):
            chosen = at_an_end(tokens, 2, dtype=torch.int32)
            weights = at_an_end(tokens, 2)
            ops.route(at_an_end(tokens, 3), router, at_an_end(3), chosen, weights)
            residual, out = at_an_end(tokens, 5), at_an_end(tokens, 5)
            ops.mix(at_an_end(tokens, width), those, chosen, weights, residual, out)
            assert out.isfinite().all()


def packed(count: int, rows: int, width: int) -> Matrices:
    """Matrices side by side; behind the last nothing is mapped."""
    ops, format = TritonMatrices("sm_90"), matrices.FORMATS["q8_0"]
    memory = at_an_end(count, ops.nbytes(format, rows, width), dtype=torch.uint8)
    return tuple(
        ops.pack(format, matrices.random_rows(format, rows, width, 1), width, into)
        for into in memory
    )


def recurrence() -> None:
    """The end of a text, over a border; only the pages that its 5 new tokens need are mapped."""
    ops, new = TritonRecurrence("cpu"), 5
    for width, kernel in ((40, 4), (1024, 2)):
        plan = ops.plan(states(StateLayout("float32", 1, width, PAGE_SIZE), new, first=2))
        x, out = at_an_end(new, width), at_an_end(new, width)
        ops.convolve(plan, 0, x, at_an_end(width, kernel), at_an_end(width), "silu", out)
        assert out.isfinite().all()
    ends = StateLayout("float32", 1, 1024, PAGE_SIZE, of_pages=True)
    borders = ops.plan(states(ends, new, first=1))
    rows = ops.plan(states(StateLayout("float32", 1, 8 + 256 + 8, PAGE_SIZE), new, first=2))
    rule = DeltaRule(2, 2, 4, 128, at_an_end(2), at_an_end(8), decays=4)
    out = at_an_end(new, 256)
    ops.delta(rows, borders, 0, at_an_end(new, 16 + 256), at_an_end(new, 10), rule, out)
    assert out.isfinite().all()
    rows = ops.plan(states(StateLayout("float32", 1, 4 + 256 + 4, PAGE_SIZE), new, first=2))
    space = StateSpaceRule(1, 4, 4, 64, *(at_an_end(4) for _ in range(3)))
    ops.scan(rows, borders, 0, at_an_end(new, 256 + 8), at_an_end(new, 4), space, out)
    assert out.isfinite().all()


def states(layout: StateLayout, new: int, first: int) -> StateBatch:
    """A sequence of 2 tokens more than 3 pages, whose pages before the first are not mapped.

    Pages of tokens and rows of states are whole pages of the operating system.
    """
    length = 3 * PAGE_SIZE + 2
    memory = torch.frombuffer(mmap.mmap(-1, 4 * layout.page_bytes), dtype=torch.float32)
    memory.normal_()
    order = [(3 * page + 1) % 4 for page in range(4)]
    for page in order[:first]:
        begin = memory.data_ptr() + page * layout.page_bytes
        for address in range(begin, begin + layout.page_bytes, OS_PAGE):
            forbid(address)
    order[:first] = [2**31 - 1] * first
    return StateBatch(
        kv=memory,
        layout=layout,
        page_table=torch.tensor([order], dtype=torch.int32),
        query_start=torch.tensor([0, new], dtype=torch.int32),
        context_len=torch.tensor([length], dtype=torch.int32),
    )


def main(length: int, window: int, sinks: int, spared: int) -> None:
    narrow.mend()
    params = AttentionParams(scale=0.125, window=window, sinks=sinks)
    attention = TritonAttention("sm_90", "cpu", multiprocessors=1)
    for dtype in ("float32", "bfloat16"):
        for queries in (1, 20):
            batch = guarded(dtype, length, queries, params, spared)
            plan = attention.plan(batch)
            k, v = (at_an_end(queries, 1, HEAD_DIM, dtype=batch.kv.dtype) for _ in range(2))
            attention.append(plan, 0, k, v)
            q, out = (at_an_end(queries, 2, HEAD_DIM, dtype=batch.kv.dtype) for _ in range(2))
            attention.run(plan, 0, q, out, params)
            assert out.isfinite().all()
            rotation = Rotation(*(at_an_end(length, HEAD_DIM // 2) for _ in range(2)))
            scales = HeadNorm(*(at_an_end(HEAD_DIM) for _ in range(2)), eps=1e-6)
            rotate_append(plan, 0, q, k, v, rotation, scales)
            assert q.isfinite().all()
    rms_norm(at_an_end(3, 1000), at_an_end(1000), 1e-5, at_an_end(3, 1000))
    gated(at_an_end(2, 2 * 1030), "silu", at_an_end(2 * 1030), at_an_end(2, 1030))


if __name__ == "__main__":
    if sys.argv[1] == "products":
        product("int8 by row", 1101)
        product("q5_1", 96)
        product("iq4_xs", 256)
    elif sys.argv[1] == "experts":
        experts()
    elif sys.argv[1] == "recurrence":
        recurrence()
    else:
        main(*map(int, sys.argv[1:4]), spared=len(sys.argv) - 4)
