"""Paged attention by the Triton kernels: `TritonAttention` is a `kvrt.spi.PagedAttention`."""

from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvrt.spi import QUANTIZATIONS, AttentionBatch, AttentionParams
from kvrt_kernels.triton.append import append
from kvrt_kernels.triton.configs import (
    WIDE,
    WIDE_CHUNK,
    WIDEST,
    Tile,
    Tiles,
    config,
    options,
)
from kvrt_kernels.triton.decode import decode_kernel, merge_kernel
from kvrt_kernels.triton.plan import Plan
from kvrt_kernels.triton.prefill import prefill_kernel

MERGED = 8  # segments that `merge_kernel` adds at a time
ROUNDS = 8  # programs for each multiprocessor where their number cannot follow the contexts
ALIGNED = 16  # bytes of the widest access
ACTIVATIONS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
MOST = 65535  # programs along a grid's second axis


class Scratch:
    """Memory for the parts of split contexts, shared by all steps and grown when needed.

    Kernels read its address from `cell`, which never moves, so that recorded calls follow it.
    """

    def __init__(self, device: torch.device) -> None:
        self.cell = torch.zeros(1, dtype=torch.int64, device=device)
        self._memory = torch.empty(0, dtype=torch.float32, device=device)

    def require(self, floats: int) -> None:
        """Have room for that many float32."""
        if floats <= len(self._memory):
            return
        device = self.cell.device
        self._memory = torch.empty(floats, dtype=torch.float32, device=device)
        address = torch.tensor([self._memory.data_ptr()])
        if device.type != "cpu":
            address = address.pin_memory()
        self.cell.copy_(address, non_blocking=True)


class TritonAttention:
    """See `kvrt.spi.PagedAttention`. Activations: float32, bfloat16, float16; pages: any format.

    Products are taken in the dtype of activations and pages if it is the same, or if pages hold
    codes, in that of activations; else in float32, and never in TF32. The calls check nothing;
    `kvrt.wrappers.Checked` has. All is submitted to torch's current stream, and nothing waits for
    the device.

    A row of a sequence that brings up to `kvrt_kernels.triton.plan.FEW` tokens has the same bits
    whatever other sequences are in its batch, and whether it was recorded or not. Prefill has tiles
    of another shape, so a prompt in pieces may differ from the prompt at once in the last bits.

    Args:
        arch: such as ``sm_90`` or ``gfx942``; chooses the tiles (`configs`).
        torch_device: where the tensors are. On ``cpu`` Triton must be interpreting.
        multiprocessors: how many compute units the device has.
    """

    def __init__(self, arch: str, torch_device: str, multiprocessors: int) -> None:
        self.config = config(arch)
        self._device = torch.device(torch_device)
        self._multiprocessors = multiprocessors
        self._scratch = Scratch(self._device)

    def plan(self, batch: AttentionBatch) -> Plan:
        return Plan(batch, self.config.segment, self._device)

    def plan_recorded(self, batch: AttentionBatch) -> Plan:
        """A plan for calls that are recorded and made again after `update`.

        It stays where it is on the device, and its launches do not depend on the contexts.
        """
        return Plan(batch, self.config.segment, self._device, recorded=True)

    def update(self, plan: Plan, batch: AttentionBatch) -> None:
        """Let a recorded plan describe another batch, which has the same `query_start`.

        Needed before each replay, the first one too. Not to be recorded itself.
        """
        plan.update(batch)
        self._scratch.require(plan.segments * plan.floats_per_segment)

    def append(self, plan: object, layer: int, k: Tensor, v: Tensor) -> None:
        append(cast(Plan, plan), layer, k, v)

    def run(
        self, plan: object, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        step = cast(Plan, plan)
        if len(step.few):
            self._few(step, layer, q, out, params)
        if len(step.many):
            self._many(step, layer, q, out, params)

    def _few(self, plan: Plan, layer: int, q: Tensor, out: Tensor, params: AttentionParams) -> None:
        layout, work = plan.layout, plan.few
        group = q.shape[1] // layout.kv_heads
        rows = work.longest * group
        floats = layout.kv_heads * rows * (layout.value_dim + 1)
        if plan.recorded:
            plan.floats_per_segment = max(plan.floats_per_segment, floats)
            programs = max(1, ROUNDS * self._multiprocessors // layout.kv_heads)
        else:
            programs = plan.segments
            if plan.split:
                self._scratch.require(plan.segments * floats)
        shared = self._shared(plan, layer, q, params)
        tile = self._tile(self.config.decode, shared, plan)
        grid = (triton.cdiv(rows, tile.block_m), min(programs, MOST), layout.kv_heads)
        decode_kernel[grid](
            q,
            out,
            plan.base(layer),
            work.table,
            self._scratch.cell,
            q.stride(0),
            out.stride(0),
            layout.page_stride,
            layout.head_stride,
            layout.v_offset,
            len(work),
            rows,
            params.window,
            params.sinks,
            params.sink_logits,
            params.scale,
            params.softcap,
            SEGMENT=self.config.segment,
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            CHUNK=tile.chunk,
            **tile.options,
            **shared,
        )
        if plan.recorded or plan.split:
            merge_kernel[(rows, layout.kv_heads, len(work))](
                out,
                work.table,
                self._scratch.cell,
                out.stride(0),
                len(work),
                rows,
                params.window,
                params.sinks,
                params.sink_logits,
                GROUP=group,
                VALUE_DIM=layout.value_dim,
                SEGMENT=self.config.segment,
                BLOCK_V=shared["BLOCK_V"],
                BLOCK_S=MERGED,
                WINDOWED=shared["WINDOWED"],
                SINKS=shared["SINKS"],
                **options(warps=4),
            )

    def _many(
        self, plan: Plan, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        layout, work = plan.layout, plan.many
        shared = self._shared(plan, layer, q, params)
        tile = self._tile(self.config.prefill, shared, plan)
        tiles = work.queries * shared["GROUP"] // tile.block_m + len(work)
        prefill_kernel[(layout.kv_heads, tiles)](
            q,
            out,
            plan.base(layer),
            work.table,
            q.stride(0),
            out.stride(0),
            layout.page_stride,
            layout.head_stride,
            layout.v_offset,
            len(work),
            params.window,
            params.sinks,
            params.sink_logits,
            params.scale,
            params.softcap,
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            CHUNK=tile.chunk,
            PEELED=tile.peeled,
            **tile.options,
            **shared,
        )

    @staticmethod
    def _tile(tiles: Tiles, shared: dict[str, Any], plan: Plan) -> Tile:
        head = max(64, shared["BLOCK_D"], shared["BLOCK_V"])
        head = head if head <= WIDEST else WIDE
        bits = shared["DOT"].primitive_bitwidth
        of_codes = tiles.get((bits - 8, head)) if plan.layout.format in QUANTIZATIONS else None
        return of_codes or tiles[bits, head]

    def _shared(self, plan: Plan, layer: int, q: Tensor, params: AttentionParams) -> dict[str, Any]:
        """The compile-time arguments that decode and prefill have in common."""
        layout = plan.layout
        keys, values = map(triton.next_power_of_2, (layout.head_dim, layout.value_dim))
        if layout.head_dim > WIDEST:  # they are multiplied by chunks
            keys = triton.cdiv(layout.head_dim, WIDE_CHUNK) * WIDE_CHUNK
        multiple = plan.base(layer) | layout.head_stride * plan.kv.element_size() | ALIGNED
        return {
            "KV": plan.dtype,
            "ALIGN": multiple & -multiple,
            "DOT": _product_dtype(plan, q),
            "GROUP": q.shape[1] // layout.kv_heads,
            "HEAD_DIM": layout.head_dim,
            "VALUE_DIM": layout.value_dim,
            "SHARED": layout.shared,
            "PAGE_SIZE": layout.page_size,
            "BLOCK_D": keys,
            # ptxas 12.8 loses the address of a tile of values that lies in shared memory where that
            # of keys lay, if their rows differ in width up to 64, as matrix instructions see them.
            "BLOCK_V": max(values, min(keys, 64)),
            "CAUSAL": params.causal,
            "WINDOWED": params.window > 0,
            "SINKS": params.window > 0 and params.sinks > 0,
            "CAPPED": params.softcap > 0,
            "TREES": plan.branches,
        }


def _product_dtype(plan: Plan, q: Tensor) -> tl.dtype:
    """Codes of 8 bits lose nothing in any dtype of activations."""
    if plan.layout.quantization is not None:
        return ACTIVATIONS[q.dtype]
    return plan.dtype if q.dtype is plan.kv.dtype else tl.float32
