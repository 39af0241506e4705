"""Products with adapters' matrices added, by the native kernels."""

from weakref import WeakKeyDictionary

from kvrt_kernels import linear, low_rank, packed
from torch import Tensor

from kvrt.spi import Activation, LowRank, LowRankRows, Matrices


class NativeLowRank:
    """`LowRankOps` over the compiled kernels, which check nothing. Activations are float32.

    Args:
        threads: how many compute.
        exact: activations are multiplied with codes as they are.
    """

    def __init__(self, threads: int, exact: bool) -> None:
        self._threads = threads
        self._exact = exact
        self._known: WeakKeyDictionary[LowRank, low_rank.Matrices] = WeakKeyDictionary()
        self._added: WeakKeyDictionary[LowRankRows, low_rank.Added] = WeakKeyDictionary()

    def adapted_linear(
        self,
        x: Tensor,
        weight: Tensor | Matrices,
        rows: LowRankRows,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        threads, added = self._threads, self._of(rows)
        if isinstance(weight, tuple):
            exact = self._exact
            return packed.linear(x, weight, bias, residual, out, threads, exact=exact, added=added)
        return linear.launch(x, weight, bias, residual, out, threads, added)

    def adapted_gated_linear(
        self,
        x: Tensor,
        weight: Tensor | Matrices,
        rows: LowRankRows,
        activation: Activation,
        bias: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        threads, added = self._threads, self._of(rows)
        if isinstance(weight, tuple):
            return packed.gated_linear(
                x, weight, activation, bias, out, threads, exact=self._exact, added=added
            )
        return linear.launch_gated(x, weight, activation, bias, out, threads, added)

    def _of(self, rows: LowRankRows) -> low_rank.Added:
        found = self._added.get(rows)
        if found is None:
            found = self._added[rows] = low_rank.added(rows, self._known)
        return found
