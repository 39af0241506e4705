"""Runs attention and append where everything they must not touch is unmapped; see test_memory.py.

python guarded.py LENGTH WINDOW        exits 0, or dies of SIGSEGV
"""

import ctypes
import mmap
import sys

import kvrt_kernels
import torch
from kvrt_kernels import append, attention

from kvrt.spi import AttentionBatch, AttentionParams, DType, KVLayout

OS_PAGE = mmap.PAGESIZE
KV_HEADS, HEAD_DIM, PAGE_SIZE, PAGES = 2, 64, 128, 12
libc = ctypes.CDLL(None, use_errno=True)


def forbid(address: int, nbytes: int) -> None:
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")


def allowed(slot: int, position: int, length: int, window: int) -> bool:
    return position < length and (window == 0 or position >= length - window)


def guarded(dtype: DType, length: int, window: int) -> AttentionBatch:
    """One sequence whose unused pages, slots and page-table entries are not mapped."""
    kind = getattr(torch, dtype)
    head = PAGE_SIZE * HEAD_DIM
    layout = KVLayout.packed(
        dtype,
        layers=1,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        page_size=PAGE_SIZE,
    )
    kv = torch.frombuffer(mmap.mmap(-1, PAGES * layout.page_stride * kind.itemsize), dtype=kind)
    kv.normal_()
    used = -(-length // PAGE_SIZE)
    order = [(5 * i + 2) % PAGES for i in range(used)]
    row = HEAD_DIM * kind.itemsize
    keep = {
        address
        for i, page in enumerate(order)
        for part in range(2 * KV_HEADS)
        for slot in range(PAGE_SIZE)
        if allowed(slot, i * PAGE_SIZE + slot, length, window)
        for address in [kv.data_ptr() + (page * layout.page_stride + part * head) * kind.itemsize]
        for address in [(address + slot * row) // OS_PAGE]
    }
    first = kv.data_ptr() // OS_PAGE
    for number in range(first, first + kv.nbytes // OS_PAGE):
        if number not in keep:
            forbid(number * OS_PAGE, OS_PAGE)
    # The entries end where a page ends, and the next page is not mapped.
    table = torch.frombuffer(mmap.mmap(-1, 2 * OS_PAGE), dtype=torch.int32)
    entries = OS_PAGE // 4
    table[entries - used : entries] = torch.tensor(order, dtype=torch.int32)
    forbid(table.data_ptr() + OS_PAGE, OS_PAGE)
    return AttentionBatch(
        kv=kv,
        layout=layout,
        page_table=table[entries - used : entries].view(1, -1),
        query_start=torch.tensor([0, 1], dtype=torch.int32),
        context_len=torch.tensor([length], dtype=torch.int32),
    )


def main(length: int, window: int) -> None:
    for isa in kvrt_kernels.isas():
        kvrt_kernels.set_isa(isa)
        for dtype in ("float32", "bfloat16", "float16"):
            batch = guarded(dtype, length, window)
            plan = attention.plan(batch)
            k, v = torch.randn(2, 1, KV_HEADS, HEAD_DIM)
            append.append(plan, 0, k, v)
            for group in (1, 2, 16):
                q = torch.randn(1, KV_HEADS * group, HEAD_DIM)
                out = torch.empty_like(q)
                params = AttentionParams(scale=0.125, window=window)
                attention.run(plan, 0, q, out, params, threads=2)
                assert out.isfinite().all()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
