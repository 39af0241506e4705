"""Copying whole pages, wherever they are: for a forked sequence's own last page, and for moving."""

import triton
import triton.language as tl
from torch import Tensor

from kvrt.errors import ContractError
from kvrt_kernels.triton.configs import options

BLOCK = 4096
WORD = 4  # bytes moved as one element; a thread moves several, as one access of 16 bytes


@triton.jit(do_not_specialize_on_alignment=["ids"])
def copy_kernel(kv, ids, words, BLOCK: tl.constexpr):
    """BLOCK words of one page. Grid: [pages, blocks of a page]. `ids` is int32 [2, pages]."""
    count = tl.num_programs(0)
    source = tl.load(ids + tl.program_id(0)).to(tl.int64)
    target = tl.load(ids + count + tl.program_id(0)).to(tl.int64)
    memory = kv.to(tl.pointer_type(tl.int32))
    n = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = n < words
    tl.store(memory + target * words + n, tl.load(memory + source * words + n, mask=mask), mask)


def copy_pages(kv: Tensor, page_stride: int, ids: Tensor) -> None:
    """Copy pages onto others; none may be both a source and a target.

    Args:
        kv: 1-D over the whole span.
        page_stride: elements of a page; its bytes are a multiple of 4.
        ids: int32 [2, pages], contiguous, on the device: the sources, then the targets.

    Raises:
        ContractError: a page has another number of bytes.
    """
    words, rest = divmod(page_stride * kv.element_size(), WORD)
    if rest:
        raise ContractError(
            f"a page of {page_stride} x {kv.dtype} is not a multiple of {WORD} bytes"
        )
    if ids.shape[1]:
        grid = (ids.shape[1], triton.cdiv(words, BLOCK))
        copy_kernel[grid](kv.data_ptr(), ids, words, BLOCK=BLOCK, **options(warps=4))
