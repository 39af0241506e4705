"""Mixtures of experts, by the native kernels."""

from weakref import WeakKeyDictionary

from kvrt_kernels import experts as kernels
from torch import Tensor

from kvrt.spi import Experts, Router


class NativeExperts:
    """`ExpertOps` over the compiled kernels.

    Args:
        threads: how many compute.
        exact: activations are multiplied with codes as they are, and not rounded.
    """

    def __init__(self, threads: int, exact: bool) -> None:
        self._threads = threads
        self._exact = exact
        self._products: WeakKeyDictionary[Experts, kernels.Products] = WeakKeyDictionary()

    def route(
        self,
        logits: Tensor,
        router: Router,
        correction: Tensor | None,
        chosen: Tensor,
        weights: Tensor,
    ) -> None:
        kernels.route(logits, router, correction, chosen, weights, self._threads)

    def mix(
        self,
        x: Tensor,
        experts: Experts,
        chosen: Tensor,
        weights: Tensor,
        residual: Tensor | None,
        out: Tensor,
    ) -> None:
        found = self._products.get(experts)
        if found is None:
            found = self._products[experts] = kernels.Products(experts, exact=self._exact)
        found.mix(x, chosen, weights, residual, out, self._threads)
