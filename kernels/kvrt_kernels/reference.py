"""The operators in plain torch: simple, slow, and the definition of what the kernels compute.

Same signatures as the native ones (`threads` is accepted and not used), float32 arithmetic, pages
reached by gathering. Serves where there is no compiled module, and in the conformance kit.
"""

import torch
from torch import Tensor
from torch.nn import functional

from kvrt.spi import (
    Activation,
    AttentionBatch,
    AttentionParams,
    Block,
    HeadNorm,
    KVLayout,
    Rotation,
)
from kvrt_kernels import codes
from kvrt_kernels.tree import Lines, lines, owned


def plan(batch: AttentionBatch) -> Lines:
    """Nothing is to be prepared but that branches are sequences of their own."""
    return lines(owned(batch))


def pages(batch: AttentionBatch, layer: int, kv: int) -> Tensor:
    """One layer's slots of keys (0) or values (1): a view [pages, kv_heads, page_size, items]."""
    block = _block(batch.layout, kv)
    items = block.dim if batch.layout.quantization is None else block.slot_stride
    return _view(batch, layer, kv, 0, (block.slot_stride, 1), (batch.layout.page_size, items))


def scales(batch: AttentionBatch, layer: int, kv: int) -> Tensor:
    """The bytes of their scales, a view [pages, kv_heads, page_size, groups, scale_bytes]."""
    layout, block = batch.layout, _block(batch.layout, kv)
    assert layout.quantization is not None
    each = layout.quantization.scale_bytes
    shape = (layout.page_size, block.groups, each)
    strides = (each, layout.page_size * each, 1)
    return _view(batch, layer, kv, block.scale_offset, strides, shape)


def _block(layout: KVLayout, kv: int) -> Block:
    return layout.values if kv else layout.keys


def _view(
    batch: AttentionBatch,
    layer: int,
    kv: int,
    offset: int,
    strides: tuple[int, ...],
    shape: tuple[int, ...],
) -> Tensor:
    """What lies `offset` items into each block: a view [pages, kv_heads, *shape]."""
    layout, block = batch.layout, _block(batch.layout, kv)
    begin = layer * layout.layer_stride + kv * layout.v_offset
    one = (layout.kv_heads - 1) * layout.head_stride + block.items
    count = (batch.kv.numel() - begin - one) // layout.page_stride + 1
    return batch.kv.as_strided(
        (count, layout.kv_heads, *shape),
        (layout.page_stride, layout.head_stride, *strides),
        batch.kv.storage_offset() + begin + offset,
    )


def read(batch: AttentionBatch, layer: int, kv: int, ids: Tensor, slots: Tensor) -> Tensor:
    """The keys or values in some slots, one of each page, float32 [pages, kv_heads, dim]."""
    stored = pages(batch, layer, kv)[ids, :, slots]
    if batch.layout.quantization is None:
        return stored.float()
    kept = scales(batch, layer, kv)[ids, :, slots].contiguous()
    return codes.decode(stored, kept, batch.layout.format, _block(batch.layout, kv).dim)


def run(
    plan: Lines,
    layer: int,
    q: Tensor,
    out: Tensor,
    params: AttentionParams,
    threads: int | None = None,
) -> None:
    """See `kvrt_kernels.attention.run`."""
    batch = plan.batch
    layout, size = batch.layout, batch.layout.page_size
    start = batch.query_start.tolist()
    for s, length in enumerate(batch.context_len.tolist()):
        rows = slice(start[s], start[s + 1])
        count = start[s + 1] - start[s]
        if count == 0:
            continue
        token = _seen_by_any(params, length, count)
        slot = plan.slots_of(s, token)
        ids = batch.page_table[s, slot // size].long()
        group = q.shape[1] // layout.kv_heads
        k, v = (  # [heads, tokens, dim]
            read(batch, layer, kv, ids, slot % size).transpose(0, 1).repeat_interleave(group, 0)
            for kv in (0, 1)
        )
        scores = q[rows].float().transpose(0, 1) @ k.transpose(1, 2) * params.scale
        if params.softcap:
            scores = params.softcap * torch.tanh(scores / params.softcap)
        position = torch.arange(length - count, length)[:, None]
        hidden = (token > position) & params.causal
        if params.window:
            hidden |= (token <= position - params.window) & (token >= params.sinks)
        scores = scores.masked_fill(hidden, float("-inf"))
        if params.sink_logits is not None:
            nobody = params.sink_logits[:, None, None].expand(-1, count, 1)
            scores = torch.cat((scores, nobody), dim=-1)
        weights = torch.softmax(scores, dim=-1)[..., : len(token)]
        out[rows] = (weights @ v).transpose(0, 1)


def _seen_by_any(params: AttentionParams, length: int, count: int) -> Tensor:
    """The positions that any of the last `count` tokens of a context sees, int64."""
    first = max(0, length - count + 1 - params.window) if params.window else 0
    return torch.cat((torch.arange(min(params.sinks, first)), torch.arange(first, length)))


def append(plan: Lines, layer: int, k: Tensor, v: Tensor, threads: int | None = None) -> None:
    """See `kvrt_kernels.append.append`."""
    batch, size = plan.batch, plan.batch.layout.page_size
    sequence, position = _positions(batch)
    slot = torch.cat(
        [plan.slots_of(s, position[sequence == s]) for s in range(len(batch.context_len))]
    )
    ids, slot = batch.page_table[sequence, slot // size].long(), slot % size
    for kv, x in enumerate((k,) if batch.layout.shared else (k, v)):
        view, new = pages(batch, layer, kv), x[: len(position)]
        if batch.layout.quantization is None:
            view[ids, :, slot] = new.to(view.dtype)
        else:
            view[ids, :, slot], kept = codes.encode(new, batch.layout.format)
            scales(batch, layer, kv)[ids, :, slot] = kept


def rotate_append(
    plan: Lines,
    layer: int,
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    rotation: Rotation | None,
    norm: HeadNorm | None,
    threads: int | None = None,
) -> None:
    """See `kvrt_kernels.append.rotate_append`."""
    count = int(plan.batch.query_start[-1])
    for x, which in ((q, "q"), (k, "k")):
        if x is None:
            continue
        head = x[:count]
        if norm is not None:
            head = rms_norm(head, getattr(norm, which), norm.eps)
        if rotation is not None:
            head = rotate(head, rotation.cos[:count], rotation.sin[:count])
        x[:count] = head
    append(plan, layer, k, v)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [tokens, heads, head_dim] by cos and sin [tokens, rotary_dim / 2]."""
    half = cos.shape[1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    threads: int | None = None,
) -> Tensor:
    """See `kvrt_kernels.linear.linear`."""
    y = functional.linear(x, weight.float(), bias)
    return y if residual is None else y + residual


def gated_linear(
    x: Tensor,
    weight: Tensor,
    activation: Activation,
    bias: Tensor | None = None,
    threads: int | None = None,
) -> Tensor:
    """See `kvrt_kernels.linear.gated_linear`."""
    gate, up = functional.linear(x, weight.float(), bias).chunk(2, dim=-1)
    if activation == "silu":
        return functional.silu(gate) * up
    return functional.gelu(gate, approximate="tanh") * up


def rms_norm(x: Tensor, weight: Tensor, eps: float, threads: int | None = None) -> Tensor:
    """See `kvrt_kernels.norm.rms_norm`."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight


def _positions(batch: AttentionBatch) -> tuple[Tensor, Tensor]:
    """The sequence and the position of each query token, int64 [tokens]."""
    start, length = batch.query_start.long(), batch.context_len.long()
    count = start.diff()
    sequence = torch.repeat_interleave(torch.arange(len(count)), count)
    position = torch.arange(len(sequence)) + (length - start[1:])[sequence]
    return sequence, position
