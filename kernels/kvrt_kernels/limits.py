"""What the machine itself can do, measured with the native kernels' own instructions."""

import mmap
from contextlib import suppress

import torch

from kvrt.spi import Bandwidth
from kvrt_kernels._args import DTYPE_CODE, DTYPE_OF_CODES, address, threads_or_default
from kvrt_kernels._load import native

PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory often has no huge pages


def measure(nbytes: int = 512 << 20, passes: int = 5, threads: int | None = None) -> Bandwidth:
    """The best of a few passes: reading `nbytes` of memory, and multiply-adds in registers.

    Args:
        nbytes: bytes to read; should be more than the last-level cache holds.
        passes: how often; the fastest counts.
        threads: None for as many as torch uses.
    """
    count = threads_or_default(threads)
    module = native()
    with mmap.mmap(-1, nbytes, flags=PRIVATE) as memory:
        with suppress(OSError):  # a kernel without huge pages reads a little slower
            memory.madvise(mmap.MADV_HUGEPAGE)
        data = torch.frombuffer(memory, dtype=torch.float32).fill_(1.0)
        read = max(module.read_bandwidth(address(data), data.nbytes, count) for _ in range(passes))
        del data  # the memory cannot be closed while a tensor looks at it
    kinds = {"bfloat16": torch.bfloat16, "float16": torch.float16, "codes": torch.uint8}
    return Bandwidth(
        read_bytes_per_s=read,
        flops_per_s=peak(torch.float32, passes, threads),
        products={name: peak(kind, passes, threads) for name, kind in kinds.items()},
    )


def peak(dtype: torch.dtype, passes: int = 5, threads: int | None = None) -> float:
    """Operations per second of the instructions that multiply with weights of that type.

    A multiply-add is two. The best of a few passes, in registers.

    Args:
        dtype: float32, bfloat16, float16; uint8 for weights that are codes.
        passes: how often; the fastest counts.
        threads: None for as many as torch uses.
    """
    code = DTYPE_OF_CODES if dtype is torch.uint8 else DTYPE_CODE[dtype]
    count = threads_or_default(threads)
    return float(max(native().product_peak(code, count) for _ in range(passes)))
