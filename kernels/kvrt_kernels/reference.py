"""The operators in plain torch: simple, slow, and the definition of what the kernels compute.

Same signatures as the native ones (`threads` is accepted and not used), float32 arithmetic, pages
reached by gathering. Serves where there is no compiled module, and in the conformance kit.
"""

import torch
from torch import Tensor
from torch.nn import functional

from kvrt.spi import Activation, AttentionBatch, AttentionParams, HeadNorm, Rotation
from kvrt_kernels import codes
from kvrt_kernels.tree import Lines, lines


def plan(batch: AttentionBatch) -> Lines:
    """Nothing is to be prepared but that branches are sequences of their own."""
    return lines(batch)


def pages(batch: AttentionBatch, layer: int) -> Tensor:
    """One layer's slots, a view [pages, 2 (key, value), kv_heads, page_size, slot_stride]."""
    layout = batch.layout
    return _view(batch, layer, 0, (layout.page_size, layout.slot_stride), (layout.slot_stride, 1))


def scales(batch: AttentionBatch, layer: int) -> Tensor:
    """The bytes of their scales, a view [pages, 2, kv_heads, page_size, groups, scale_bytes]."""
    layout = batch.layout
    assert layout.quantization is not None
    each = layout.quantization.scale_bytes
    shape = (layout.page_size, layout.groups, each)
    return _view(batch, layer, layout.scale_offset, shape, (each, layout.page_size * each, 1))


def _view(
    batch: AttentionBatch,
    layer: int,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
) -> Tensor:
    """What lies `offset` items into each block of a layer: a view [pages, 2, kv_heads, *shape]."""
    layout = batch.layout
    one = layout.v_offset + (layout.kv_heads - 1) * layout.head_stride + layout.block_items
    begin = layer * layout.layer_stride
    count = (batch.kv.numel() - begin - one) // layout.page_stride + 1
    return batch.kv.as_strided(
        (count, 2, layout.kv_heads, *shape),
        (layout.page_stride, layout.v_offset, layout.head_stride, *strides),
        batch.kv.storage_offset() + begin + offset,
    )


def read(batch: AttentionBatch, layer: int, ids: Tensor, slots: Tensor) -> Tensor:
    """The numbers in some slots, one of each page, float32 [pages, 2, kv_heads, head_dim]."""
    stored = pages(batch, layer)[ids, :, :, slots]
    if batch.layout.quantization is None:
        return stored.float()
    kept = scales(batch, layer)[ids, :, :, slots].contiguous()
    return codes.decode(stored, kept, batch.layout)


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
        slot = plan.slots_of(s, torch.arange(length))
        ids = batch.page_table[s, slot // size].long()
        # [2, kv_heads, length, head_dim]
        kv = read(batch, layer, ids, slot % size).permute(1, 2, 0, 3)
        group = q.shape[1] // layout.kv_heads
        k, v = kv.repeat_interleave(group, dim=1)
        scores = q[rows].float().transpose(0, 1) @ k.transpose(1, 2) * params.scale
        if params.softcap:
            scores = params.softcap * torch.tanh(scores / params.softcap)
        position = torch.arange(length - count, length)[:, None]
        token = torch.arange(length)[None, :]
        hidden = token > position
        if params.window:
            hidden |= token <= position - params.window
        scores = scores.masked_fill(hidden, float("-inf"))
        out[rows] = (torch.softmax(scores, dim=-1) @ v).transpose(0, 1)


def append(plan: Lines, layer: int, k: Tensor, v: Tensor, threads: int | None = None) -> None:
    """See `kvrt_kernels.append.append`."""
    batch = plan.batch
    view, size = pages(batch, layer), batch.layout.page_size
    sequence, position = _positions(batch)
    slot = torch.cat(
        [plan.slots_of(s, position[sequence == s]) for s in range(len(batch.context_len))]
    )
    ids, slot = batch.page_table[sequence, slot // size].long(), slot % size
    for side, x in enumerate((k[: len(position)], v[: len(position)])):
        if batch.layout.quantization is None:
            view[ids, side, :, slot] = x.to(view.dtype)
        else:
            numbers, kept = codes.encode(x, batch.layout)
            view[ids, side, :, slot] = numbers
            scales(batch, layer)[ids, side, :, slot] = kept


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
    _, position = _positions(plan.batch)
    count = len(position)
    for x, which in ((q, "q"), (k, "k")):
        if x is None:
            continue
        head = x[:count]
        if norm is not None:
            head = rms_norm(head, getattr(norm, which), norm.eps)
        if rotation is not None:
            head = rotate(head, rotation.cos[position], rotation.sin[position])
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
