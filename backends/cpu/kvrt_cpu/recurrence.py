"""Recurrent layers by the native kernels."""

from kvrt_kernels import recurrence
from torch import Tensor

from kvrt.spi import DeltaRule, StateActivation, StateBatch, StateSpaceRule


class NativeRecurrence:
    """`Recurrence` over the compiled kernels, which check nothing. Activations are float32."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def plan(self, batch: StateBatch) -> recurrence.Plan:
        return recurrence.plan(batch)

    def convolve(
        self,
        plan: object,
        layer: int,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: StateActivation,
        out: Tensor,
    ) -> None:
        assert isinstance(plan, recurrence.Plan)
        recurrence.convolve(plan, layer, x, weight, bias, activation, out, self._threads)

    def delta(
        self,
        tokens: object,
        borders: object,
        layer: int,
        qkv: Tensor,
        gates: Tensor,
        rule: DeltaRule,
        out: Tensor,
    ) -> None:
        assert isinstance(tokens, recurrence.Plan)
        assert isinstance(borders, recurrence.Plan)
        recurrence.delta(tokens, borders, layer, qkv, gates, rule, out, self._threads)

    def scan(
        self,
        tokens: object,
        borders: object,
        layer: int,
        xbc: Tensor,
        times: Tensor,
        rule: StateSpaceRule,
        out: Tensor,
    ) -> None:
        assert isinstance(tokens, recurrence.Plan)
        assert isinstance(borders, recurrence.Plan)
        recurrence.scan(tokens, borders, layer, xbc, times, rule, out, self._threads)
