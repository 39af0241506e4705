"""Checks of `PagedAttention`.

All that depends on the batch is checked once a step, in `plan`, with a few operations on whole
arrays; `append` and `run`, called once a layer, compare a handful of attributes.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kvrt.errors import ContractError
from kvrt.spi import (
    AttentionBatch,
    AttentionParams,
    Capability,
    KVLayout,
    PagedAttention,
    StateBatch,
    StepBatch,
)
from kvrt.wrappers.memory import CheckedMemory
from kvrt.wrappers.rules import Facts, broken, whole


@dataclass(frozen=True, slots=True, eq=False)
class CheckedPlan:
    """A device's plan, with what `append` and `run` are checked against.

    Args:
        inner: the device's own plan.
        kv: the address of the batch's pages.
        layout: the batch's layout.
        tokens: rows of q, k, v and out.
        branches: whether they may branch.
    """

    inner: object
    kv: int
    layout: KVLayout
    tokens: int
    branches: bool


@dataclass(frozen=True, slots=True)
class Extents:
    """Where the elements of one page are, from its first on: `nbytes` at each of `starts`.

    Args:
        starts: byte offsets of the page's contiguous pieces.
        nbytes: bytes of one piece.
        page_bytes: bytes from one page to the next.
        pages: how many pages fit before their pieces would run into one another.
    """

    starts: NDArray[np.int64]
    nbytes: int
    page_bytes: int
    pages: float


class CheckedAttention:
    """`PagedAttention` that refuses batches and tensors its rules do not allow."""

    def __init__(self, facts: Facts, memory: CheckedMemory, inner: PagedAttention) -> None:
        self._facts = facts
        self._memory = memory
        self._inner = inner
        self._plans: dict[int, CheckedPlan] = {}  # the latest ones, by the addresses of their kv
        self._layouts: dict[int, tuple[KVLayout, Extents]] = {}  # those checked, by their ids

    def plan(self, batch: AttentionBatch) -> CheckedPlan:
        self._facts.check_open("attention.plan")
        self.check(batch)
        return self.adopt(batch, self._inner.plan(batch))

    def check(self, batch: AttentionBatch) -> None:
        """Refuse a batch that breaks a rule."""
        extents = self._extents(batch.layout)
        start = _host_ints("query_start", batch.query_start, 1)
        context = _host_ints("context_len", batch.context_len, 1)
        table = _host_ints("page_table", batch.page_table, 2)
        _check_rows(start, context, table)
        if batch.parents is not None:
            if Capability.TREES not in self._facts.info.capabilities:
                rule = f"must be None: {self._facts.info.backend} does not declare TREES"
                raise broken("parents", "a tensor", rule)
            _check_parents(_host_ints("parents", batch.parents, 1), start)
        self._check_pages(batch, extents, context, table)

    def check_states(self, batch: StateBatch) -> None:
        """Likewise, of layers with a recurrence."""
        layout = batch.layout
        for name in ("layers", "width", "page_size"):
            if not whole(getattr(layout, name)) or getattr(layout, name) <= 0:
                raise broken(f"layout.{name}", repr(getattr(layout, name)), "must be positive")
        start = _host_ints("query_start", batch.query_start, 1)
        context = _host_ints("context_len", batch.context_len, 1)
        table = _host_ints("page_table", batch.page_table, 2)
        _check_rows(start, context, table)
        size = layout.page_bytes
        extents = Extents(np.zeros(1, np.int64), size, size, math.inf)
        self._check_pages(batch, extents, context, table)

    def adopt(self, batch: AttentionBatch, plan: object) -> CheckedPlan:
        """Make the device's plan of a checked batch the one that calls on its pages must name."""
        at = batch.kv.data_ptr()
        if at not in self._plans:  # those of spans that are gone are nobody's
            live = self._memory.mapping_at
            self._plans = {kv: plan for kv, plan in self._plans.items() if live(kv)}
        branches = batch.parents is not None
        checked = CheckedPlan(plan, at, batch.layout, int(batch.query_start.numpy()[-1]), branches)
        self._plans[at] = checked
        return checked

    def append(self, plan: object, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        checked = self.check_step("attention.append", plan, layer)
        self.check_kv(k, v, checked)
        if k.dtype != v.dtype:
            raise broken("v", v, f"must have the dtype of k, {k.dtype}")
        self._inner.append(checked.inner, layer, k, v)

    def run(
        self,
        plan: object,
        layer: int,
        q: torch.Tensor,
        out: torch.Tensor,
        params: AttentionParams,
    ) -> None:
        checked = self.check_step("attention.run", plan, layer)
        self.check_rows("q", q, checked, None)
        self.check_rows("out", out, checked, q.shape[1], checked.layout.value_dim)
        if q.dtype != out.dtype:
            raise broken("out", out, f"must have the dtype of q, {q.dtype}")
        self._check_params(params, checked, q.shape[1])
        self._inner.run(checked.inner, layer, q, out, params)

    def _check_params(self, params: AttentionParams, plan: CheckedPlan, heads: int) -> None:
        if not math.isfinite(params.scale):
            raise broken("params.scale", params.scale, "must be finite")
        if not whole(params.window) or params.window < 0:
            raise broken("params.window", repr(params.window), "must be a whole number from 0 on")
        if not 0 <= params.softcap < math.inf:
            raise broken("params.softcap", params.softcap, "must be finite and not negative")
        if not whole(params.sinks) or params.sinks < 0:
            raise broken("params.sinks", repr(params.sinks), "must be a whole number from 0 on")
        if not params.causal and (params.window or plan.branches):
            raise broken("params.causal", False, "must be True with a window, and with parents")
        if params.sink_logits is not None:
            self._facts.check_vector("params.sink_logits", params.sink_logits, heads)

    def check_step(self, method: str, plan: object, layer: int) -> CheckedPlan:
        """The plan, if it is this step's and has that layer."""
        self._facts.check_open(method)
        if not isinstance(plan, CheckedPlan) or plan is not self._plans.get(plan.kv):
            raise ContractError(
                f"{method}: plan must be what the latest attention.plan() of its pages gave"
            )
        if not (whole(layer) and 0 <= layer < plan.layout.layers):
            rule = f"must be a whole number from 0 and below {plan.layout.layers}"
            raise broken("layer", repr(layer), rule)
        return plan

    def check_kv(self, k: torch.Tensor, v: torch.Tensor, plan: CheckedPlan) -> None:
        """Keys and values to be stored."""
        self.check_rows("k", k, plan, plan.layout.kv_heads)
        self.check_rows("v", v, plan, plan.layout.kv_heads, plan.layout.value_dim)

    def check_rows(
        self,
        argument: str,
        tensor: torch.Tensor,
        plan: CheckedPlan,
        heads: int | None,
        dim: int | None = None,
    ) -> None:
        """[tokens, heads, dim], each row contiguous.

        Args:
            heads: None: any multiple of the KV heads.
            dim: elements of a head; None: as many as of a key.
        """
        self._facts.check_activation(argument, tensor)
        shape = tensor.shape
        layout = plan.layout
        dim = layout.head_dim if dim is None else dim
        if (
            len(shape) != 3
            or shape[0] != plan.tokens
            or shape[2] != dim
            or (shape[1] == 0 or shape[1] % layout.kv_heads if heads is None else shape[1] != heads)
        ):
            count = f"a multiple of {layout.kv_heads}" if heads is None else str(heads)
            rule = f"must be [{plan.tokens} tokens, {count} heads, {dim}]"
            raise broken(argument, tensor, rule)
        stride = tensor.stride()
        if stride[2] != 1 or (stride[1] != dim and shape[1] != 1):
            raise broken(argument, tensor, "the heads of a row must be contiguous")

    def _check_pages(
        self,
        batch: StepBatch,
        extents: Extents,
        context: NDArray[np.int64],
        table: NDArray[np.int64],
    ) -> None:
        """Every page that may be read or written lies in a live span, and is mapped."""
        kv = batch.kv
        self._facts.check_on_device("kv", kv)
        mapping = self._memory.mapping_at(kv.data_ptr())
        if mapping is None or kv.data_ptr() != mapping.span.base or kv.dim() != 1:
            raise broken("kv", kv, "must be the 1-D tensor of a whole live span")
        storage = batch.layout.storage
        if kv.dtype != getattr(torch, storage) or kv.nbytes != mapping.span.nbytes:
            rule = f"must be the {storage} tensor of the whole {mapping.span}"
            raise broken("kv", kv, rule)
        needed = -(-context // batch.layout.page_size)
        if needed.max() > table.shape[1]:
            s = int(needed.argmax())
            rule = f"sequence {s} has {context[s]} tokens and needs {needed[s]} pages"
            raise broken("page_table", f"[{len(table)}, {table.shape[1]}]", rule)
        room = mapping.span.nbytes - int(extents.starts[-1]) - extents.nbytes
        limit = min(room // extents.page_bytes + 1, extents.pages)
        if table.size:
            # Most often no page of the table, used or not, is near a hole.
            lowest, highest = int(table.min()), int(table.max())
            reach = (highest - lowest) * extents.page_bytes + extents.nbytes
            starts = lowest * extents.page_bytes + extents.starts
            if lowest >= 0 and highest < limit and mapping.covers(starts, reach).all():
                return
        used = np.arange(table.shape[1]) < needed[:, None]  # [sequences, max pages]
        pages = table[used]
        bad = (pages < 0) | (pages >= limit)
        rule = f"must be from 0 and below {limit}, the pages of the span"
        if not bad.any():
            rule = "is not mapped: a part of it is a hole of the span"
            for start in extents.starts.tolist():
                bad |= ~mapping.covers(pages * extents.page_bytes + start, extents.nbytes)
        if bad.any():
            s, i = (int(index) for index in np.argwhere(used)[bad.argmax()])
            raise broken(f"page_table[{s}, {i}]", f"page {table[s, i]}", rule)

    def _extents(self, layout: KVLayout) -> Extents:
        """Where a page's elements are; checks the layout when it comes for the first time."""
        known = self._layouts.get(id(layout))
        if known is None:
            if layout.format not in self._facts.info.kv_formats:
                rule = f"must be one of the device's {', '.join(self._facts.info.kv_formats)}"
                raise broken("layout.format", repr(layout.format), rule)
            extents = checked_layout(layout)
            self._check_widths(layout)
            known = self._layouts[id(layout)] = layout, extents
        return known[1]

    def _check_widths(self, layout: KVLayout) -> None:
        sizes = self._facts.info.head_dims
        for name in ("head_dim", "value_dim"):
            if sizes and getattr(layout, name) not in sizes:
                rule = f"must be one of the device's {', '.join(map(str, sizes))}"
                raise broken(f"layout.{name}", getattr(layout, name), rule)
        alike = layout.value_dim == layout.head_dim and not layout.shared
        if not alike and Capability.VALUE_WIDTHS not in self._facts.info.capabilities:
            rule = f"{self._facts.info.backend} does not declare VALUE_WIDTHS"
            raise broken("layout.value_dim", layout.value_dim, f"must be that of keys: {rule}")


def checked_layout(layout: KVLayout) -> Extents:
    """Where the elements of one page are.

    Raises:
        ContractError: a field is not a positive number, two elements would share a place, or scales
            would not be aligned.
    """
    for name in ("layers", "kv_heads", "head_dim", "value_dim", "page_size", "page_stride"):
        if not whole(getattr(layout, name)) or getattr(layout, name) <= 0:
            raise broken(f"layout.{name}", repr(getattr(layout, name)), "must be positive")
    sizes = {"head_stride": layout.kv_heads, "v_offset": 2, "layer_stride": layout.layers}
    for name in sizes:
        if not whole(getattr(layout, name)) or getattr(layout, name) < 0:
            raise broken(f"layout.{name}", repr(getattr(layout, name)), "must not be negative")
    if layout.quantization is not None:
        align = layout.quantization.scale_bytes
        for name in (*sizes, "page_stride"):
            if getattr(layout, name) % align:
                rule = f"must be a multiple of {align}, the bytes of a scale"
                raise broken(f"layout.{name}", getattr(layout, name), rule)
    if layout.shared:
        if layout.value_dim > layout.head_dim:
            rule = f"must be at most {layout.head_dim}: values are the beginning of the keys"
            raise broken("layout.value_dim", layout.value_dim, rule)
        del sizes["v_offset"]
    axes = [(getattr(layout, name), size, name) for name, size in sizes.items() if size > 1]
    # Axes outside the page, e.g. the layers of [layer][page], leave room for only so many pages.
    outside = [stride for stride, _, _ in axes if stride > layout.page_stride]
    pages = min(outside) // layout.page_stride if outside else 1
    axes.append((layout.page_stride, pages, "page_stride"))
    keys, values = layout.keys.items, layout.values.items
    block = max(keys, values)
    side_by_side = not layout.shared and layout.v_offset == min(axes)[0]
    reach = keys if side_by_side else block  # elements from the first to the last so far
    for stride, size, name in sorted(axes):
        if stride < reach:
            rule = f"must be {reach} or more, or elements would share a place"
            raise broken(f"layout.{name}", stride, rule)
        if name == "v_offset" and side_by_side:
            reach = stride + values
        else:
            reach += stride * (size - 1)
    item, page_bytes = layout.item_bytes, layout.page_bytes
    if outside:
        return Extents(_pieces(layout), block * item, page_bytes, pages)
    return Extents(np.zeros(1, np.int64), reach * item, page_bytes, math.inf)


def _pieces(layout: KVLayout) -> NDArray[np.int64]:
    """Byte offsets of the blocks of each layer, key or value, and head, in ascending order."""
    layer, kv, head = np.ogrid[: layout.layers, : 1 if layout.shared else 2, : layout.kv_heads]
    starts = layer * layout.layer_stride + kv * layout.v_offset + head * layout.head_stride
    return np.sort(starts.ravel()) * layout.item_bytes


class CheckedPlans:
    """Checks each step's batch, and leaves the calls of its layers to the device."""

    def __init__(self, checked: CheckedAttention, inner: PagedAttention) -> None:
        self._checked = checked
        self.append = inner.append
        self.run = inner.run

    def plan(self, batch: AttentionBatch) -> object:
        return self._checked.plan(batch).inner


def _host_ints(argument: str, tensor: torch.Tensor, ndim: int) -> NDArray[np.int64]:
    if not isinstance(tensor, torch.Tensor):
        raise broken(argument, repr(tensor), "must be a tensor")
    if tensor.dtype != torch.int32 or tensor.dim() != ndim or not tensor.is_cpu:
        raise broken(argument, tensor, f"must be an int32 tensor of {ndim} dimensions on the host")
    if not tensor.is_contiguous():
        raise broken(argument, tensor, "must be contiguous")
    return tensor.numpy().astype(np.int64)


def _check_rows(
    start: NDArray[np.int64], context: NDArray[np.int64], table: NDArray[np.int64]
) -> None:
    sequences = len(context)
    if not sequences:
        raise broken("context_len", "[]", "a batch has at least one sequence")
    if len(start) != sequences + 1:
        rule = f"{sequences} sequences need {sequences + 1} entries"
        raise broken("query_start", f"[{len(start)}]", rule)
    if len(table) != sequences:
        raise broken("page_table", f"{len(table)} rows", f"there are {sequences} sequences")
    if start[0] != 0:
        raise broken("query_start[0]", start[0], "must be 0")
    query = start[1:] - start[:-1]
    if query.min() < 0:
        s = int((query < 0).argmax())
        raise broken(f"query_start[{s + 1}]", start[s + 1], f"is less than {start[s]} before it")
    if (context - query).min() < 0:
        s = int((context < query).argmax())
        rule = f"must include the {query[s]} tokens that the sequence brings"
        raise broken(f"context_len[{s}]", context[s], rule)


def _check_parents(parents: NDArray[np.int64], start: NDArray[np.int64]) -> None:
    if len(parents) != start[-1]:
        raise broken("parents", f"[{len(parents)}]", f"there are {start[-1]} tokens")
    row = np.arange(len(parents)) - np.repeat(start[:-1], np.diff(start))
    bad = (parents < -1) | (parents >= row)
    if bad.any():
        i = int(bad.argmax())
        rule = f"must be -1 or a row before its own, which is row {row[i]} of its sequence"
        raise broken(f"parents[{i}]", parents[i], rule)
