"""The machine's own limits, which speeds are compared with."""

import time
from collections.abc import Callable

import torch
from kvrt_kernels import limits

from kvrt.spi import Bandwidth


class NativeLimits:
    """Measured with the compiled kernels: close to what the hardware can do."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def measure(self) -> Bandwidth:
        return limits.measure(threads=self._threads)


class TorchLimits:
    """Measured with torch: what a sum and a matrix product reach, with torch's own threads."""

    def measure(self) -> Bandwidth:
        memory = torch.ones(64 << 20)
        matrix = torch.ones(1024, 1024)
        read = min(_seconds(lambda: memory.sum()) for _ in range(5))
        multiply = min(_seconds(lambda: matrix @ matrix) for _ in range(5))
        return Bandwidth(memory.nbytes / read, 2 * 1024**3 / multiply)


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
