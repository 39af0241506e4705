"""Steps recorded as a graph of the device, CUDA's or HIP's, by torch, and replayed in one call."""

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch

from kvrt.spi import AttentionBatch
from kvrt_kernels.triton import TritonAttention
from kvrt_kernels.triton.plan import Plan

SIZES = (1, 2, 4, 8, *range(16, 129, 16), *range(160, 257, 32))
"""Tokens of a recorded step. Each takes time and memory to record, so steps in between are padded:
by less than half, and from 48 tokens on by less than a third."""


class DeviceGraph:
    """`Graph` over a recorded plan, which stays where it is on the device."""

    def __init__(
        self, attention: TritonAttention, plan: Plan, recorded: torch.cuda.CUDAGraph
    ) -> None:
        self._attention = attention
        self._plan = plan
        self._recorded = recorded

    def replay(self, batch: AttentionBatch) -> None:
        self._attention.update(self._plan, batch)
        self._recorded.replay()


class DeviceGraphs:
    """`GraphCapture` by torch's own, for the kernels of `TritonAttention` and `TritonOps`.

    All graphs share one pool for what is only needed within a step: two never run at once.

    Args:
        attention: the device's.
        torch_device: the device string of its tensors.
    """

    def __init__(self, attention: TritonAttention, torch_device: str) -> None:
        self._attention = attention
        self._device = torch.device(torch_device)
        self._pool: Any = None

    def size(self, tokens: int) -> int:
        place = bisect_left(SIZES, tokens)
        return SIZES[place] if place < len(SIZES) else 0

    def capture(self, batch: AttentionBatch, record: Callable[[object], None]) -> DeviceGraph:
        plan = self._attention.plan_recorded(batch)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        recorded = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        # Relaxed: a kernel that was not launched yet is loaded now, which is no stream's work.
        with torch.cuda.graph(
            recorded, pool=self._pool, stream=stream, capture_error_mode="relaxed"
        ):
            record(plan)
        return DeviceGraph(self._attention, plan, recorded)
