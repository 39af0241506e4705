"""Recurrent layers over pages: the calls. `kvrt.spi.Recurrence` says what, native/recurrence.cpp
how. Nothing is checked here but what the kernels cannot do."""

from typing import NamedTuple

from torch import Tensor

from kvrt.spi import DeltaRule, StateActivation, StateBatch, StateSpaceRule
from kvrt_kernels._args import address, need, threads_or_default
from kvrt_kernels._load import native


class Plan(NamedTuple):
    """A step's sequences over pages, which must live as long as it is used.

    Args:
        batch: of the step.
    """

    batch: StateBatch

    def pages(self, layer: int) -> tuple[int, ...]:
        """What the native module takes for the pages of a layer, and the step's sequences."""
        batch, layout = self.batch, self.batch.layout
        return (
            address(batch.kv),
            layout.page_stride,
            layer * layout.layer_stride,
            layout.rows,
            layout.width,
            address(batch.page_table),
            batch.page_table.stride(0),
            address(batch.query_start),
            address(batch.context_len),
            batch.context_len.shape[0],
        )


def plan(batch: StateBatch) -> Plan:
    """Raises ContractError: the pages are not float32."""
    need(batch.layout.format == "float32", f"pages of states are {batch.layout.format}")
    return Plan(batch)


def convolve(
    plan: Plan,
    layer: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: StateActivation,
    out: Tensor,
    threads: int | None = None,
) -> None:
    native().convolve(
        plan.pages(layer),
        address(x),
        x.stride(0),
        address(weight),
        address(bias),
        weight.shape[1],
        activation == "silu",
        address(out),
        out.stride(0),
        threads_or_default(threads),
    )


def delta(
    tokens: Plan,
    borders: Plan,
    layer: int,
    qkv: Tensor,
    gates: Tensor,
    rule: DeltaRule,
    out: Tensor,
    threads: int | None = None,
) -> None:
    keys = rule.key_heads * rule.key_dim
    native().delta(
        tokens.pages(layer),
        borders.pages(layer),
        (*(address(qkv[:, first:]) for first in (0, keys, 2 * keys)), address(out)),
        (qkv.stride(0), out.stride(0)),
        (
            rule.key_heads,
            rule.value_heads,
            rule.key_dim,
            rule.value_dim,
            rule.decays,
            rule.tiled,
        ),
        address(gates),
        gates.stride(0),
        address(rule.decay_log),
        address(rule.decay_bias),
        rule.strength,
        threads_or_default(threads),
    )


def scan(
    tokens: Plan,
    borders: Plan,
    layer: int,
    xbc: Tensor,
    times: Tensor,
    rule: StateSpaceRule,
    out: Tensor,
    threads: int | None = None,
) -> None:
    values, keys = rule.heads * rule.head_dim, rule.groups * rule.state_dim
    native().scan(
        tokens.pages(layer),
        borders.pages(layer),
        (*(address(xbc[:, first:]) for first in (values + keys, values, 0)), address(out)),
        (xbc.stride(0), out.stride(0)),
        (rule.groups, rule.heads, rule.state_dim, rule.head_dim, 1, False),
        address(times),
        times.stride(0),
        address(rule.decay_log),
        address(rule.time_bias),
        address(rule.skip),
        *rule.limits,
        threads_or_default(threads),
    )
