"""How long work on a device takes, and how fast the device copies."""

import statistics
import time
from collections.abc import Callable

import torch

SPAN_S = 0.15
"""A measurement lasts about this long."""

MOST, LEAST = 100, 5
FLUSH_BYTES = 512 << 20
"""Written before each round: more than any cache, and long enough for the host to submit the round
while the device is busy with it."""

COPY_BYTES = 2 << 30


class Clock:
    """Times work on one device: on a GPU by its events, on the host by the host's clock.

    Args:
        torch_device: the device string of the work's tensors.
        small: for trying the benchmarks out: few rounds, small sizes, nothing flushed.
    """

    def __init__(self, torch_device: str, *, small: bool) -> None:
        self.device = torch.device(torch_device)
        self.on_host = self.device.type == "cpu"
        self._small = small
        flush = 0 if self.on_host or small else FLUSH_BYTES
        self._flush = torch.empty(flush, dtype=torch.uint8, device=self.device)

    def synchronize(self) -> None:
        if not self.on_host:
            torch.cuda.synchronize(self.device)

    def host_seconds(self, work: Callable[[], object]) -> float:
        """Once, from an idle device to an idle device, on the host's clock."""
        self.synchronize()
        begin = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - begin

    def seconds(self, work: Callable[[], object]) -> float:
        """The median of several rounds, each with cold caches, after two that warm up."""
        self.host_seconds(work)
        rounds = self._rounds(self.host_seconds(work))
        if self.on_host:
            return statistics.median(self.host_seconds(work) for _ in range(rounds))
        pairs = []
        for _ in range(rounds):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._flush.zero_()
            begin.record()
            work()
            end.record()
            pairs.append((begin, end))
        self.synchronize()
        return statistics.median(begin.elapsed_time(end) for begin, end in pairs) / 1e3

    def back_to_back(self, work: Callable[[], object]) -> float:
        """Seconds of one of many rounds that follow each other without a pause."""
        self.host_seconds(work)
        rounds = self._rounds(self.host_seconds(work))
        if self.on_host:
            return self.host_seconds(lambda: [work() for _ in range(rounds)]) / rounds
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(rounds):
            work()
        end.record()
        self.synchronize()
        return begin.elapsed_time(end) / 1e3 / rounds

    def _rounds(self, once: float) -> int:
        if self._small:
            return LEAST
        return max(LEAST, min(MOST, int(SPAN_S / max(once, 1e-6))))

    def copy_bandwidth(self) -> float:
        """Bytes a second that a large copy on the device reads and writes, counted both."""
        nbytes = 64 << 20 if self._small else COPY_BYTES
        seconds = self._copy_seconds(nbytes)
        if not self.on_host:
            torch.cuda.empty_cache()  # what is measured next may want the memory
        return 2 * nbytes / seconds

    def _copy_seconds(self, nbytes: int) -> float:
        source = torch.randint(256, (nbytes,), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return self.seconds(lambda: target.copy_(source))
