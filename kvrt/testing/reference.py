"""What the operators of `kvrt.spi` mean, as plain arithmetic.

Written to be read next to the contract and to share nothing with any backend: float64 on the
host, one sequence, one row and one formula at a time. Slow, and meant to be.
"""

import math

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
    PlainActivation,
    Rotation,
)


def items(layout: KVLayout, pages: Tensor, slots: Tensor, layer: int, kv: int) -> Tensor:
    """Where tokens are: int64 [tokens, kv_heads, items of a slot], indices into the KV tensor.

    Args:
        layout: the layout of the KV tensor.
        pages: the sequence's row of the page table, [pages].
        slots: of the tokens, counted from the sequence's first page on, int64 [tokens].
        layer: which layer.
        kv: 0 for keys, 1 for values.
    """
    block = _blocks(layout, pages, slots, layer, kv)
    stride = side(layout, kv).slot_stride
    count = stride if layout.quantization else side(layout, kv).dim
    slot = slots % layout.page_size * stride
    return block[:, :, None] + slot[:, None, None] + torch.arange(count)


def side(layout: KVLayout, kv: int) -> Block:
    """How keys or values lie in their blocks."""
    return layout.values if kv else layout.keys


def scales(layout: KVLayout, pages: Tensor, slots: Tensor, layer: int, kv: int) -> Tensor:
    """Where their scales are: int64 [tokens, kv_heads, groups, bytes of a scale]."""
    assert layout.quantization is not None
    size = layout.quantization.scale_bytes
    group = torch.arange(side(layout, kv).groups) * layout.page_size * size
    slot = slots % layout.page_size * size + side(layout, kv).scale_offset
    block = _blocks(layout, pages, slots, layer, kv)
    first = block[:, :, None] + slot[:, None, None] + group
    return first[..., None] + torch.arange(size)


def _blocks(layout: KVLayout, pages: Tensor, slots: Tensor, layer: int, kv: int) -> Tensor:
    """Where the blocks of tokens begin, int64 [tokens, kv_heads]."""
    page = pages.long()[slots // layout.page_size]
    token = page * layout.page_stride + layer * layout.layer_stride + kv * layout.v_offset
    return token[:, None] + torch.arange(layout.kv_heads) * layout.head_stride


def rows(batch: AttentionBatch, sequence: int) -> slice:
    """The rows of q, k, v and out that belong to a sequence."""
    return slice(int(batch.query_start[sequence]), int(batch.query_start[sequence + 1]))


def new_slots(batch: AttentionBatch, sequence: int) -> Tensor:
    """Where a sequence's new tokens are stored, as if there were no branches, int64."""
    count = rows(batch, sequence).stop - rows(batch, sequence).start
    length = int(batch.context_len[sequence])
    return torch.arange(length - count, length)


def line(batch: AttentionBatch, sequence: int, row: int) -> Tensor:
    """Slots of the tokens that a new token follows, in order, and last its own, int64."""
    slots = new_slots(batch, sequence)
    past = torch.arange(int(batch.context_len[sequence]) - len(slots))
    if batch.parents is None:
        return torch.cat((past, slots[: row + 1]))
    ancestors: list[int] = []
    while row >= 0:
        ancestors.insert(0, row)
        row = int(batch.parents[rows(batch, sequence)][row])
    return torch.cat((past, slots[ancestors]))


def new_positions(batch: AttentionBatch, sequence: int) -> Tensor:
    """The positions of a sequence's new tokens, int64."""
    count = len(new_slots(batch, sequence))
    return torch.tensor([len(line(batch, sequence, row)) - 1 for row in range(count)]).long()


def read(batch: AttentionBatch, sequence: int, layer: int, kv: int, slots: Tensor) -> Tensor:
    """The stored keys or values of some tokens, [tokens, kv_heads, dim] on the host.

    In the dtype of the KV tensor; float64 if they are kept as codes.
    """
    layout, device = batch.layout, batch.kv.device
    where = layout, batch.page_table[sequence], slots, layer, kv
    stored = batch.kv[items(*where).to(device)].cpu()
    if layout.quantization is None:
        return stored
    scale = batch.kv[scales(*where).to(device)].cpu()
    if layout.quantization.group == 0:
        code = torch.int8 if layout.format == "int8" else torch.float8_e4m3fn
        numbers = stored.view(code).double() * scale.view(torch.float32)[..., 0].double()
        return numbers[..., : side(layout, kv).dim]
    groups = side(layout, kv).groups
    numbers = torch.empty((*stored.shape[:2], stored.shape[2] // 16, 32), dtype=torch.float64)
    for element in range(32):
        byte = stored[..., element % 16 :: 16]
        numbers[..., element] = (byte >> (4 * (element // 16)) & 15).double() - 8
    numbers = numbers[:, :, :groups] * scale.view(torch.bfloat16).double()
    return numbers.flatten(2)[..., : side(layout, kv).dim]


def write(
    batch: AttentionBatch, sequence: int, layer: int, kv: int, slots: Tensor, value: Tensor
) -> None:
    """Store keys or values of some tokens, rounded to nearest even."""
    if not len(slots):
        return
    layout, device = batch.layout, batch.kv.device
    where = layout, batch.page_table[sequence], slots, layer, kv
    where_items = items(*where).to(device)
    if layout.quantization is None:
        batch.kv[where_items] = value.to(batch.kv.dtype).to(device)
        return
    x = value.cpu().float()
    if layout.quantization.group == 0:
        scale = x.abs().amax(-1, keepdim=True) / (127 if layout.format == "int8" else 448)
        x = x / torch.where(scale == 0, 1, scale)
        stored = x.round().to(torch.int8) if layout.format == "int8" else x.to(torch.float8_e4m3fn)
    else:
        x = torch.cat((x, torch.zeros(*x.shape[:2], -x.shape[2] % 32)), dim=2)
        x = x.view(*x.shape[:2], x.shape[2] // 32, 32)
        most, least = x.amax(-1), x.amin(-1)
        scale = (torch.where(most > -least, most, least) / -8).bfloat16()
        code = ((x / scale.float()[..., None]).round().clamp(-8, 7) + 8).to(torch.uint8)
        scale, stored = scale[..., None], (code[..., :16] + 16 * code[..., 16:]).flatten(2)
    batch.kv[where_items] = stored.view(torch.uint8).to(device)
    batch.kv[scales(*where).to(device)] = (
        scale.view(torch.uint8).view(scales(*where).shape).to(device)
    )


def append(batch: AttentionBatch, layer: int, k: Tensor, v: Tensor) -> None:
    """`PagedAttention.append`."""
    for s in range(len(batch.context_len)):
        write(batch, s, layer, 0, new_slots(batch, s), k[rows(batch, s)])
        if not batch.layout.shared:
            write(batch, s, layer, 1, new_slots(batch, s), v[rows(batch, s)])


def attention(batch: AttentionBatch, layer: int, q: Tensor, params: AttentionParams) -> Tensor:
    """`PagedAttention.run`: float64 [tokens, heads, value_dim] on the host."""
    out = torch.zeros(*q.shape[:2], batch.layout.value_dim, dtype=torch.float64)
    group = q.shape[1] // batch.layout.kv_heads  # query head h reads KV head h // group
    for s in range(len(batch.context_len)):
        queries = q[rows(batch, s)].cpu().double()
        for row in range(len(queries)):
            seen = visible(batch, s, row, params)
            k, v = (
                read(batch, s, layer, kv, seen).double().repeat_interleave(group, dim=1)
                for kv in (0, 1)
            )
            score = torch.einsum("khd,hd->hk", k, queries[row]) * params.scale
            if params.softcap:
                score = params.softcap * torch.tanh(score / params.softcap)
            total = score.logsumexp(-1, keepdim=True)
            if params.sink_logits is not None:
                total = torch.logaddexp(total, params.sink_logits.cpu().double()[:, None])
            out[rows(batch, s)][row] = torch.einsum("hk,khd->hd", (score - total).exp(), v)
    return out


def visible(batch: AttentionBatch, sequence: int, row: int, params: AttentionParams) -> Tensor:
    """Slots of the tokens that a new token sees, in order, int64."""
    if not params.causal:
        return torch.arange(int(batch.context_len[sequence]))
    seen = line(batch, sequence, row)
    before = len(seen) - params.window if params.window else 0  # positions before its window
    return torch.cat((seen[: max(0, min(params.sinks, before))], seen[max(0, before) :]))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """`DenseOps.linear` in float64 on the host."""
    out = x.cpu().double() @ weight.cpu().double().T
    if bias is not None:
        out = out + bias.cpu().double()
    if residual is not None:
        out = out + residual.cpu().double()
    return out


def gated_linear(x: Tensor, weight: Tensor, activation: Activation, bias: Tensor | None) -> Tensor:
    """`DenseOps.gated_linear` in float64 on the host."""
    gate, up = linear(x, weight, bias, None).chunk(2, dim=1)
    if activation == "silu":
        return gate * torch.sigmoid(gate) * up
    cubic = gate + 0.044715 * gate**3  # Hendrycks & Gimpel 2016, arXiv 1606.08415
    return 0.5 * gate * (1 + torch.tanh((2 / torch.pi) ** 0.5 * cubic)) * up


def as_codes(x: Tensor) -> Tensor:
    """x as `PackedMatrices` may round it, in float64 on the host; the rounding is in float32."""
    width = x.shape[1]
    blocks = functional.pad(x.cpu().float(), (0, -width % 32)).view(len(x), -1, 32)
    most = blocks.abs().amax(-1, keepdim=True)
    codes = (blocks * (127 / most)).round().double()
    values = torch.where(most < 2.0**-100, 0.0, codes * (most / 127).double())
    values = values.flatten(1)[:, :width]
    values[~x.cpu().isfinite().all(-1)] = torch.nan
    return values


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`DenseOps.rms_norm` in float64 on the host."""
    x = x.cpu().double()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.cpu().double()


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """`BranchOps.layer_norm`, likewise."""
    x = x.cpu().double()
    x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.cpu().double()
    return x if bias is None else x + bias.cpu().double()


def activated(x: Tensor, activation: PlainActivation) -> Tensor:
    """`BranchOps.activate`, likewise."""
    x = x.cpu().double()
    if activation == "relu2":
        return x.clamp(min=0.0).square()
    if activation == "gelu":
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotary embedding of [tokens, heads, head_dim], in float64 on the host.

    Dimension i of the first half of the rotated ones is paired with dimension i of the second.
    """
    x = x.cpu().double()
    cos = rotation.cos.cpu().double()[:, None]
    sin = rotation.sin.cpu().double()[:, None]
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


def normed_and_rotated(
    q: Tensor, k: Tensor, rotation: Rotation | None, norm: HeadNorm | None
) -> tuple[Tensor, Tensor]:
    """What `DenseOps.rotate_append` makes of q and k, in float64 on the host."""
    if norm is not None:
        q, k = rms_norm(q, norm.q, norm.eps), rms_norm(k, norm.k, norm.eps)
    if rotation is not None:
        q, k = rotate(q, rotation), rotate(k, rotation)
    return q.cpu().double(), k.cpu().double()
