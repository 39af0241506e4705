"""Paged attention on the CPU, by the native kernels.

    plan = attention.plan(batch)            once a step
    append.append(plan, layer, k, v)        once a layer
    attention.run(plan, layer, q, out, params)

A query token's result has the same bits whatever else is in its batch, however its prompt was
cut into chunks, whatever branches stand beside its own, and for any number of threads
(native/attention.h says why).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvrt.errors import ContractError
from kvrt.spi import AttentionBatch, AttentionParams
from kvrt_kernels import HEAD_DIMS
from kvrt_kernels._args import (
    FORMAT_CODE,
    address,
    check_heads,
    check_vector,
    need,
    threads_or_default,
)
from kvrt_kernels._load import native
from kvrt_kernels.tree import lines, owned


@dataclass(frozen=True, slots=True)
class Plan:
    """A batch as the native module takes it.

    Args:
        batch: kept alive because its addresses are below; its branches are sequences.
        layer_bytes: distance between layers.
        tokens: query tokens of the whole batch.
        pages: where in a layer a page's elements are.
        sequences: where the page table and the tokens of each sequence are.
        branches: kept alive as well: where the tokens of branches are.
    """

    batch: AttentionBatch
    format: int
    kv: int
    layer_bytes: int
    tokens: int
    pages: tuple[int, ...]
    sequences: tuple[int, ...]
    branches: tuple[Tensor, ...] = ()

    def cache(self, layer: int) -> tuple[int, ...]:
        """The arguments that say where a layer's pages and the batch's tokens are."""
        return (self.format, self.kv + layer * self.layer_bytes, *self.pages, *self.sequences)


def plan(batch: AttentionBatch, *, lasting: bool = True, number: int = 0) -> Plan:
    """Check what the layers of a step share.

    Page ids and lengths are trusted, as `kvrt.spi` says: an id of a page that is not mapped ends
    the process.

    Args:
        batch: of the step.
        lasting: the caller may change the batch's tensors on the host while the plan is in use.
        number: of the batch among those of a step that is recorded.

    Raises:
        ContractError: a tensor has another shape or dtype than `AttentionBatch` says, or the
            layout is one these kernels do not know (heads of a size that is not among
            `kvrt_kernels.HEAD_DIMS`; fp8).
    """
    branches: tuple[Tensor, ...] = ()
    if batch.parents is not None:
        found = lines(batch)
        batch, branches = found.batch, (found.trunk, found.slots)
    elif lasting:
        batch = owned(batch)
    layout = batch.layout
    table, start, length = batch.page_table, batch.query_start, batch.context_len
    for name, dim in (("head_dim", layout.head_dim), ("value_dim", layout.value_dim)):
        if dim not in HEAD_DIMS:
            raise ContractError(f"{name} must be among {HEAD_DIMS}, not {dim}")
    if layout.format not in FORMAT_CODE:
        raise ContractError(f"{layout.format} is not among {', '.join(FORMAT_CODE)}")
    need(layout.page_size > 0, f"page_size must be positive, not {layout.page_size}")
    for name, x, shape in (
        ("page_table", table, (table.shape[0], table.shape[-1])),
        ("query_start", start, (table.shape[0] + 1,)),
        ("context_len", length, (table.shape[0],)),
    ):
        if x.dtype is not torch.int32 or x.shape != shape or not x.is_contiguous():
            raise ContractError(
                f"{name} must be contiguous int32 {list(shape)}, not {x.dtype} {list(x.shape)}"
            )
    if batch.kv.dtype is not getattr(torch, layout.storage):
        raise ContractError(
            f"kv must be {layout.storage}, as its layout says, not {batch.kv.dtype}"
        )
    return Plan(
        batch=batch,
        format=FORMAT_CODE[layout.format],
        kv=address(batch.kv),
        layer_bytes=layout.layer_stride * batch.kv.element_size(),
        tokens=int(start.numpy()[-1]),
        pages=(
            layout.v_offset,
            layout.page_stride,
            layout.head_stride,
            layout.page_size,
            layout.kv_heads,
            layout.head_dim,
            layout.value_dim,
        ),
        sequences=(
            address(table),
            table.stride(0),
            address(start),
            address(length),
            table.shape[0],
            *(address(tensor) for tensor in branches or (None, None)),
            branches[1].stride(0) if branches else 0,
            number,
        ),
        branches=branches,
    )


def run(
    plan: Plan,
    layer: int,
    q: Tensor,
    out: Tensor,
    params: AttentionParams,
    threads: int | None = None,
) -> None:
    """Attention of every query token over its sequence's pages.

        out[i, h] = sum over t of softmax over t (cap(scale * q[i, h] . k[t, h'])) v[t, h']

    where h' = h // (heads / kv_heads), t runs over the positions that `params` lets the token see,
    and cap(s) = softcap * tanh(s / softcap) if softcap is not 0.

    Args:
        plan: from `plan`; the tokens' own keys and values must have been appended.
        layer: index of the layer.
        q: float32 [tokens, heads, head_dim]; rows may have any stride.
        out: float32 [tokens, heads, value_dim]; written. Rows may have any stride.
        params: see `kvrt.spi.AttentionParams`.
        threads: None for as many as torch uses.

    Raises:
        ContractError: q or out has another shape or dtype.
    """
    layout = plan.batch.layout
    check_heads("q", q, layout.head_dim)
    check_heads("out", out, layout.value_dim)
    heads = q.shape[1]
    need(q.shape[0] >= plan.tokens, f"q has {q.shape[0]} rows for {plan.tokens} tokens")
    same = out.shape[:2] == q.shape[:2]
    need(same, f"out is {list(out.shape)} but q is {list(q.shape)}")
    if params.sink_logits is not None:
        check_vector("the sinks' logits", params.sink_logits, heads)
    need(
        heads % layout.kv_heads == 0,
        f"{heads} query heads cannot share {layout.kv_heads} kv heads evenly",
    )
    launch(plan, layer, q, out, params, threads_or_default(threads))


def launch(
    plan: Plan, layer: int, q: Tensor, out: Tensor, params: AttentionParams, threads: int
) -> None:
    """`run` without its checks, which take longer than the call: for callers that made them."""
    native().attention(
        *plan.cache(layer),
        q.data_ptr(),
        q.stride(0),
        out.data_ptr(),
        out.stride(0),
        q.shape[1],
        params.scale,
        params.window,
        params.softcap,
        params.sinks,
        params.causal,
        address(params.sink_logits),
        threads,
    )
