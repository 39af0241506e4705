"""Steps recorded as a graph of the device, CUDA's or HIP's, by torch, and replayed in one call."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakSet

import torch

from kvrt.spi import AttentionBatch
from kvrt_kernels.triton import TritonAttention
from kvrt_kernels.triton.plan import Plan

SIZES = (1, 2, 4, 8, *range(16, 129, 16), *range(160, 257, 32))
"""Tokens of a recorded step. Each takes time and memory to record, so steps in between are padded:
by less than half, and from 48 tokens on by less than a third."""


class DeviceGraph:
    """`Graph` over recorded plans, which stay where they are on the device."""

    def __init__(
        self, attention: TritonAttention, plans: Sequence[Plan], recorded: torch.cuda.CUDAGraph
    ) -> None:
        self._attention = attention
        self._plans = plans
        self._recorded = recorded

    def replay(self, batches: Sequence[AttentionBatch]) -> None:
        for plan, batch in zip(self._plans, batches, strict=True):
            self._attention.update(plan, batch)
        self._recorded.replay()


class DeviceGraphs:
    """`GraphCapture` by torch's own, for the kernels of `kvrt_kernels.triton`.

    All graphs of a device share a pool for what is only needed within a step: two never run at
    once. They are captured on one stream, which nothing else uses:

    - torch gives a pool's segments only to the stream they were taken for, so that graphs of
      different streams would share nothing.
    - cuBLAS keeps a workspace for each handle and stream: 32 MiB on Hopper.
    - Destroying a graph may clear the workspaces of its stream, under the feet of other graphs
      captured there. These are destroyed together, by who has captured them.

    torch has 32 streams of a priority and hands them out in turn, so more than 32 devices opened in
    one process do share some.

    Args:
        attention: the device's.
        torch_device: the device string of its tensors.
    """

    def __init__(self, attention: TritonAttention, torch_device: str) -> None:
        self._attention = attention
        self._device = torch.device(torch_device)
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None
        self._live: WeakSet[DeviceGraph] = WeakSet()

    def size(self, tokens: int) -> int:
        place = bisect_left(SIZES, tokens)
        return SIZES[place] if place < len(SIZES) else 0

    def capture(
        self, batches: Sequence[AttentionBatch], record: Callable[[Sequence[object]], None]
    ) -> DeviceGraph:
        plans = [self._attention.plan_recorded(batch) for batch in batches]
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        if not self._live:
            self._pool = torch.cuda.graph_pool_handle()  # the old one has gone with its last graph
        recorded = torch.cuda.CUDAGraph()
        # Relaxed: a kernel that was not launched yet is loaded now, which is no stream's work.
        with torch.cuda.graph(
            recorded, pool=self._pool, stream=self._stream, capture_error_mode="relaxed"
        ):
            record(plans)
        graph = DeviceGraph(self._attention, plans, recorded)
        self._live.add(graph)
        return graph
