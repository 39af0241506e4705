"""One block of memory for all weights of a model."""

import contextlib
import ctypes
import mmap
import os

import torch
from torch import Tensor

from kvrt.errors import OutOfMemory

HUGE_PAGE = 2 << 20


def allocate(nbytes: int, torch_device: str) -> Tensor:
    """Memory for weights: uint8 [nbytes] on a device, its content undefined.

    In host memory it lies in 2 MiB pages where the system has them, because reading weights through
    4 KiB pages is 10 to 20 % slower. The memory is given back when the last view of it is gone.

    Raises:
        OutOfMemory: there is not enough.
    """
    try:
        if torch_device == "cpu":
            return _huge_pages(nbytes)
        return torch.empty(nbytes, dtype=torch.uint8, device=torch_device)
    except (OSError, torch.OutOfMemoryError) as error:
        raise OutOfMemory(f"{nbytes:,} bytes for weights: {error}", needed=nbytes) from error


def give_back(block: Tensor) -> None:
    """Give the memory of a block in host memory back to the system, and keep its addresses: it may
    be filled again.

    Raises:
        OSError: the system refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    nbytes = -(-block.numel() // mmap.PAGESIZE) * mmap.PAGESIZE  # there is room behind it
    address, length = ctypes.c_void_p(block.data_ptr()), ctypes.c_size_t(nbytes)
    if libc.madvise(address, length, mmap.MADV_DONTNEED):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _huge_pages(nbytes: int) -> Tensor:
    # The system aligns a mapping to 4 KiB only, so take one huge page more and start at the first.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    mapping = mmap.mmap(-1, nbytes + HUGE_PAGE, flags=flags)
    with contextlib.suppress(OSError):  # EINVAL: a kernel without huge pages; 4 KiB pages serve
        mapping.madvise(mmap.MADV_HUGEPAGE)
    block = torch.frombuffer(mapping, dtype=torch.uint8)  # keeps the mapping alive
    start = -block.data_ptr() % HUGE_PAGE
    return block[start : start + nbytes]
