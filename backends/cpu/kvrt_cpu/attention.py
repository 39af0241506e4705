"""Paged attention on the CPU: by the native kernels, or in plain torch where there are none."""

from typing import cast

from kvrt_kernels import append, attention, reference
from kvrt_kernels.tree import Lines
from torch import Tensor

from kvrt.spi import AttentionBatch, AttentionParams

from .memory import LinuxMemory


class NativeAttention:
    """The compiled kernels.

    Activations are float32. `plan` raises `ContractError` for a head_dim that is not among
    `kvrt_kernels.HEAD_DIMS`. The calls of a layer check nothing: it would take longer than small
    calls do, and `kvrt.wrappers.Checked` has checked.
    """

    def __init__(self, memory: LinuxMemory, threads: int) -> None:
        self._memory = memory
        self._threads = threads

    def plan(
        self, batch: AttentionBatch, *, lasting: bool = True, number: int = 0
    ) -> attention.Plan:
        self._memory.require_owner()
        return attention.plan(batch, lasting=lasting, number=number)

    def append(self, plan: object, layer: int, k: Tensor, v: Tensor) -> None:
        step = cast(attention.Plan, plan)
        append.launch(step, layer, None, k, v, None, None, self._threads)

    def run(
        self, plan: object, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        attention.launch(cast(attention.Plan, plan), layer, q, out, params, self._threads)


class TorchAttention:
    """The definition of the operator, in plain torch: any layout, 10 to 40 times as slow."""

    def __init__(self, memory: LinuxMemory) -> None:
        self._memory = memory

    def plan(self, batch: AttentionBatch) -> Lines:
        self._memory.require_owner()
        return reference.plan(batch)

    def append(self, plan: object, layer: int, k: Tensor, v: Tensor) -> None:
        reference.append(cast(Lines, plan), layer, k, v)

    def run(
        self, plan: object, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        reference.run(cast(Lines, plan), layer, q, out, params)
