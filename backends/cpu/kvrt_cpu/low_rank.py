"""Adapters' matrices, by the native kernels."""

from weakref import WeakKeyDictionary

from kvrt_kernels import low_rank as kernels
from torch import Tensor

from kvrt.spi import Activation, LowRankRows


class NativeLowRank:
    """`LowRankOps` over the compiled kernels, which check nothing. Activations are float32."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._added: WeakKeyDictionary[LowRankRows, kernels.Added] = WeakKeyDictionary()

    def add(self, x: Tensor, rows: LowRankRows, out: Tensor) -> None:
        self._of(rows).to(x, out, threads=self._threads)

    def add_gated(
        self, x: Tensor, rows: LowRankRows, both: Tensor, activation: Activation, out: Tensor
    ) -> None:
        self._of(rows).to(x, both, activation, out, self._threads)

    def _of(self, rows: LowRankRows) -> kernels.Added:
        found = self._added.get(rows)
        if found is None:
            found = self._added[rows] = kernels.Added(rows)
        return found
