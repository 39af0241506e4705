"""Recurrent layers over pages: `TritonRecurrence` is a `kvrt.spi.Recurrence`."""

from typing import Any, Final, cast

import torch
import triton
from torch import Tensor

from kvrt.spi import DeltaRule, StateActivation, StateBatch, StateSpaceRule
from kvrt_kernels.triton.configs import options
from kvrt_kernels.triton.convolve import convolve
from kvrt_kernels.triton.state_plan import StatePlan
from kvrt_kernels.triton.states import delta_kernel, scan_kernel

COLUMNS: Final = 32
"""Of a head's state, of one program: as wide as one access of a warp."""

NUMBERS: Final = 1024
"""Of a state that a warp has: 32 registers of each thread."""


class TritonRecurrence:
    """See `kvrt.spi.Recurrence`. The calls check nothing; `kvrt.wrappers.Checked` has.

    A token's bits depend on its position and on those before it, in any batch and however its text
    was cut into steps. A step's tokens are computed one after the other.

    Args:
        torch_device: where the tensors are. On ``cpu`` Triton must be interpreting.
    """

    def __init__(self, torch_device: str) -> None:
        self._device = torch.device(torch_device)

    def plan(self, batch: StateBatch) -> StatePlan:
        return StatePlan(batch, self._device)

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
        convolve(cast(StatePlan, plan), layer, x, weight, bias, activation, out)

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
        own, ends = cast(StatePlan, tokens), cast(StatePlan, borders)
        if own.tokens:
            shape = _shape(rule.value_heads, rule.key_dim, rule.value_dim)
            delta_kernel[_grid(own, shape)](
                qkv,
                gates,
                out,
                rule.decay_log,
                rule.decay_bias,
                *_pages(own, ends, layer),
                qkv.stride(0),
                gates.stride(0),
                out.stride(0),
                *_strides(own, ends),
                rule.strength,
                rule.key_dim**-0.5,
                KEY_HEADS=rule.key_heads,
                DECAYS=rule.decays,
                TILED=rule.tiled,
                PAGE_SIZE=own.layout.page_size,
                **shape,
            )

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
        own, ends = cast(StatePlan, tokens), cast(StatePlan, borders)
        if own.tokens:
            shape = _shape(rule.heads, rule.state_dim, rule.head_dim)
            scan_kernel[_grid(own, shape)](
                xbc,
                times,
                out,
                rule.decay_log,
                rule.time_bias,
                rule.skip,
                *_pages(own, ends, layer),
                xbc.stride(0),
                times.stride(0),
                out.stride(0),
                *_strides(own, ends),
                *rule.limits,
                GROUPS=rule.groups,
                PAGE_SIZE=own.layout.page_size,
                **shape,
            )


def _shape(heads: int, key: int, value: int) -> dict[str, Any]:
    """What both kernels are compiled for."""
    block_k = triton.next_power_of_2(key)
    block_v = min(COLUMNS, triton.next_power_of_2(value))
    warps = max(1, min(16, block_k * block_v // NUMBERS))
    # Rounded operations are the same for a token that is new and for one that was there before.
    return {"HEADS": heads, "KEY": key, "VALUE": value, "BLOCK_K": block_k, "BLOCK_V": block_v} | (
        options(warps) | {"enable_fp_fusion": False}
    )


def _grid(plan: StatePlan, shape: dict[str, Any]) -> tuple[int, int, int]:
    return plan.count, shape["HEADS"], triton.cdiv(shape["VALUE"], shape["BLOCK_V"])


def _pages(own: StatePlan, ends: StatePlan, layer: int) -> tuple[Any, ...]:
    return own.base(layer), ends.base(layer), *own.tables, ends.tables[2]


def _strides(own: StatePlan, ends: StatePlan) -> tuple[int, ...]:
    return own.layout.page_stride, ends.layout.page_stride, own.columns, ends.columns
