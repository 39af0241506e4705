"""What the machine itself can do, measured with the native kernels' own instructions."""

import torch

from kvrt.spi import Bandwidth
from kvrt_kernels._args import address, threads_or_default
from kvrt_kernels._load import native


def measure(nbytes: int = 256 << 20, passes: int = 5, threads: int | None = None) -> Bandwidth:
    """The best of a few passes: reading `nbytes` of memory, and multiply-adds in registers.

    Args:
        nbytes: bytes to read; choose several times the last-level cache to measure memory.
        passes: how often; the fastest counts.
        threads: None for as many as torch uses.
    """
    count = threads_or_default(threads)
    memory = torch.ones(nbytes // 4)
    module = native()
    return Bandwidth(
        read_bytes_per_s=max(
            module.read_bandwidth(address(memory), nbytes, count) for _ in range(passes)
        ),
        flops_per_s=max(module.fma_peak(count) for _ in range(passes)),
    )
