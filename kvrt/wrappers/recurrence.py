"""Checks of the optional `Recurrence`."""

from dataclasses import dataclass
from typing import get_args

import torch

from kvrt.errors import ContractError
from kvrt.spi import DeltaRule, Recurrence, StateActivation, StateBatch, StateSpaceRule
from kvrt.wrappers.attention import CheckedAttention
from kvrt.wrappers.rules import TORCH_DTYPE, Facts, broken, whole


@dataclass(frozen=True, slots=True, eq=False)
class CheckedStates:
    """A device's plan, with the batch that it is of."""

    inner: object
    batch: StateBatch

    @property
    def tokens(self) -> int:
        return int(self.batch.query_start[-1])


class CheckedRecurrence:
    """`Recurrence` that refuses what its rules do not allow.

    Args:
        attention: knows the pages that are mapped.
        layers: also check the calls of each layer, and not the batches alone.
    """

    def __init__(
        self, facts: Facts, attention: CheckedAttention, inner: Recurrence, layers: bool
    ) -> None:
        self._facts = facts
        self._attention = attention
        self._inner = inner
        self._layers = layers

    def plan(self, batch: StateBatch) -> CheckedStates:
        self._facts.check_open("recurrence.plan")
        self._attention.check_states(batch)
        return CheckedStates(self._inner.plan(batch), batch)

    def convolve(
        self,
        plan: object,
        layer: int,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        activation: StateActivation,
        out: torch.Tensor,
    ) -> None:
        states = self._states("plan", plan, layer)
        if self._layers:
            width = states.batch.layout.width
            self._check_rows("x", x, states, width)
            self._check_rows("out", out, states, width)
            if x.dtype != TORCH_DTYPE.get(states.batch.layout.format):
                raise broken("x", x, f"must be {states.batch.layout.format}, as its pages are")
            if out.numel() and out.data_ptr() == x.data_ptr():
                raise broken("out", out, "must not be x")
            self._facts.check_on_device("weight", weight)
            if weight.dim() != 2 or weight.shape[1] < 1:
                raise broken("weight", weight, f"must be [{width}, kernel]")
            self._facts.check_floats("weight", weight, (width, weight.shape[1]))
            if bias is not None:
                self._facts.check_vector("bias", bias, width)
            if activation not in get_args(StateActivation):
                rule = f"must be one of {', '.join(get_args(StateActivation))}"
                raise broken("activation", repr(activation), rule)
        self._inner.convolve(states.inner, layer, x, weight, bias, activation, out)

    def delta(
        self,
        tokens: object,
        borders: object,
        layer: int,
        qkv: torch.Tensor,
        gates: torch.Tensor,
        rule: DeltaRule,
        out: torch.Tensor,
    ) -> None:
        own, ends = self._states("tokens", tokens, layer), self._states("borders", borders, layer)
        if self._layers:
            keys, values = rule.key_heads * rule.key_dim, rule.value_heads * rule.value_dim
            decays = rule.value_heads * rule.decays
            if rule.value_heads % rule.key_heads:
                raise broken("rule", rule, "must have as many value heads for each key head")
            if rule.decays not in (1, rule.key_dim):
                raise broken("rule", rule, "must have a decay of each head or of each key's number")
            self._check_layout("tokens", own, keys + values + decays, of_pages=False)
            self._check_layout("borders", ends, values * rule.key_dim, of_pages=True)
            self._check_rows("qkv", qkv, own, 2 * keys + values)
            self._check_rows("gates", gates, own, rule.value_heads + decays)
            self._check_rows("out", out, own, values)
            self._facts.check_vector("rule.decay_log", rule.decay_log, rule.value_heads)
            self._facts.check_vector("rule.decay_bias", rule.decay_bias, decays)
        self._inner.delta(own.inner, ends.inner, layer, qkv, gates, rule, out)

    def scan(
        self,
        tokens: object,
        borders: object,
        layer: int,
        xbc: torch.Tensor,
        times: torch.Tensor,
        rule: StateSpaceRule,
        out: torch.Tensor,
    ) -> None:
        own, ends = self._states("tokens", tokens, layer), self._states("borders", borders, layer)
        if self._layers:
            keys, values = rule.groups * rule.state_dim, rule.heads * rule.head_dim
            if rule.heads % rule.groups:
                raise broken("rule", rule, "must have as many heads in each group")
            if not 0 <= rule.limits[0] <= rule.limits[1]:
                raise broken("rule", rule, "must have limits from 0, the shortest first")
            self._check_layout("tokens", own, keys + values + rule.heads, of_pages=False)
            self._check_layout("borders", ends, values * rule.state_dim, of_pages=True)
            self._check_rows("xbc", xbc, own, values + 2 * keys)
            self._check_rows("times", times, own, rule.heads)
            self._check_rows("out", out, own, values)
            for name in ("decay_log", "time_bias", "skip"):
                self._facts.check_vector(f"rule.{name}", getattr(rule, name), rule.heads)
        self._inner.scan(own.inner, ends.inner, layer, xbc, times, rule, out)

    def _states(self, argument: str, plan: object, layer: int) -> CheckedStates:
        self._facts.check_open("recurrence")
        if not isinstance(plan, CheckedStates):
            raise ContractError(f"{argument} must be what recurrence.plan() gave")
        layers = plan.batch.layout.layers
        if not (whole(layer) and 0 <= layer < layers):
            raise broken("layer", repr(layer), f"must be a whole number from 0 and below {layers}")
        return plan

    def _check_layout(
        self, argument: str, states: CheckedStates, width: int, *, of_pages: bool
    ) -> None:
        layout = states.batch.layout
        if (layout.format, layout.width, layout.of_pages) != ("float32", width, of_pages):
            what = "page" if of_pages else "token"
            raise broken(argument, layout, f"must have {width} of float32 for each {what}")

    def _check_rows(
        self, argument: str, tensor: torch.Tensor, states: CheckedStates, width: int
    ) -> None:
        self._facts.check_activation(argument, tensor)
        if tensor.shape != (states.tokens, width) or (tensor.numel() and tensor.stride(1) != 1):
            raise broken(argument, tensor, f"must be [{states.tokens}, {width}], rows contiguous")
