"""The tensors that a step of the decoder computes in."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kvrt.model.spec import ModelSpec
from kvrt.spi import DeviceInfo, DType, Rotation


def computed_in(dtype: DType, info: DeviceInfo) -> DType:
    """What a device computes activations in, where weights have a dtype: that, if it can."""
    return dtype if dtype in info.compute_dtypes else info.compute_dtypes[0]


class Heads(NamedTuple):
    """What a layer's attention computes in, [tokens, ...] each: the other fields but the last are
    views of these."""

    qkv: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    attended: Tensor
    rows: Tensor

    @classmethod
    def of_whole(cls, spec: ModelSpec, count: int, dtype: torch.dtype, device: str) -> "Heads":
        """Of layers that see all, where those have heads of their own."""
        assert spec.whole is not None
        kv_heads, dim = spec.whole.kv_heads, spec.whole.head_dim
        heads = (spec.heads, kv_heads, kv_heads)[: 2 + spec.whole.values]
        qkv = torch.empty(count, sum(heads) * dim, dtype=dtype, device=device)
        q, k, *values = qkv.view(count, -1, dim).split_with_sizes(heads, 1)
        v = values[0] if values else torch.empty_like(k)
        attended = torch.empty(count, spec.heads, dim, dtype=dtype, device=device)
        return cls(qkv, q, k, v, attended, attended.view(count, -1))


class Activations(NamedTuple):
    """The activations of a step, [tokens, ...] each. Every layer uses the same: a reader is done
    before the next writer. Taking them once, with their views, saves 15 us a layer."""

    x: Tensor
    normed: Tensor
    qkv: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    gate: Tensor
    attended: Tensor
    attended_rows: Tensor
    low: Tensor
    raw: Tensor
    gated: Tensor
    heat: Tensor
    logits: Tensor
    chosen: Tensor
    weights: Tensor
    ones: Tensor
    shared: Tensor
    mixed: Tensor
    convolved: Tensor
    gates: Tensor
    recalled: Tensor
    rotations: tuple[Rotation, ...]
    whole: Heads | None

    @property
    def usual(self) -> Heads:
        """Of layers that have the heads of most."""
        return Heads(self.qkv, self.q, self.k, self.v, self.attended, self.attended_rows)

    @classmethod
    def empty(cls, spec: ModelSpec, count: int, dtype: torch.dtype, device: str) -> "Activations":
        def tensor(*shape: int) -> Tensor:
            return torch.empty(count, *shape, dtype=dtype, device=device)

        attended = tensor(spec.heads, spec.value_dim)
        if (latent := spec.latent) is None:
            gates = spec.heads * spec.gated_attention
            heads = (spec.heads, gates, spec.kv_heads, spec.kv_heads)
            qkv = tensor(sum(heads) * spec.head_dim)
            q, gate, k, v = qkv.view(count, -1, spec.head_dim).split_with_sizes(heads, 1)
            rows, low, raw = attended.view(count, -1), tensor(0), tensor(0)
        else:
            queries = spec.heads * latent.width
            qkv, gate = tensor((latent.query_rank or queries) + spec.head_dim), tensor(0)
            q, k = tensor(spec.heads, spec.head_dim), qkv[:, None, -spec.head_dim :]
            v, rows, low = k[..., : latent.rank], tensor(spec.attended), tensor(latent.query_rank)
            raw = tensor(queries) if latent.query_rank else qkv[:, :queries]
            raw = raw.view(count, spec.heads, -1)
        experts, chosen, shared = 0, 0, 0
        if spec.experts is not None:
            experts, shared = spec.experts.count, spec.experts.shared
            chosen = spec.experts.router.chosen
        made, channels, kept, out = _of_recurrence(spec)
        pairs = [rope.width(spec.head_dim) // 2 for rope in spec.ropes]
        return cls(
            x=tensor(spec.hidden),
            normed=tensor(spec.hidden),
            qkv=qkv,
            q=q,
            k=k,
            v=v,
            gate=gate,
            attended=attended,
            attended_rows=rows,
            low=low,
            raw=raw,
            gated=tensor(spec.intermediate),
            heat=tensor(1, 1) if spec.query_beta else tensor(0, 0),
            logits=torch.empty(count, experts, device=device),
            chosen=torch.empty(count, chosen, dtype=torch.int32, device=device),
            weights=torch.empty(count, chosen, device=device),
            ones=torch.ones(count, chosen, device=device),
            shared=tensor(shared),
            mixed=tensor(made),
            convolved=tensor(channels),
            gates=tensor(kept),
            recalled=tensor(out),
            rotations=tuple(
                Rotation(*(torch.empty(count, width, device=device) for _ in range(2)))
                for width in pairs
            ),
            whole=Heads.of_whole(spec, count, dtype, device) if spec.whole else None,
        )

    @staticmethod
    def width(spec: ModelSpec) -> int:
        """Elements for each token, what operators in plain torch need for a moment included."""
        heads = 2 * (spec.heads + spec.kv_heads) * spec.head_dim
        heads += spec.gated_attention * 2 * spec.heads * spec.head_dim
        if spec.latent is not None:
            of_queries = spec.heads * spec.latent.width + 2 * spec.latent.query_rank
            heads += of_queries + spec.attended
        if spec.whole is not None:
            heads += 2 * (spec.heads + spec.whole.kv_heads) * spec.whole.head_dim
        kept = 2 * spec.hidden + heads + spec.intermediate
        # What a predictor reads of a token, its state, and that of the token before.
        kept += 6 * spec.hidden if spec.predictor is not None else 0
        # Cosines and sines are float32 also where the others are of 16 bits.
        kept += 2 * sum(rope.width(spec.head_dim) for rope in spec.ropes)
        passing = max(2 * spec.hidden, 2 * spec.intermediate, _of_experts(spec))
        recurrent = sum(_of_recurrence(spec))
        return kept + recurrent + max(passing, 2 * recurrent)

    @property
    def tokens(self) -> int:
        return self.x.shape[0]

    def first(self, count: int) -> "Activations":
        """Those of the first `count` tokens, in the same memory."""
        rotations = tuple(Rotation(r.cos[:count], r.sin[:count]) for r in self.rotations)
        tensors: dict[str, Any] = {
            name: getattr(self, name)[:count]
            for name in self._fields
            if name not in ("rotations", "whole")
        }
        whole = Heads(*(one[:count] for one in self.whole)) if self.whole else None
        return Activations(**tensors, rotations=rotations, whole=whole)


def _of_recurrence(spec: ModelSpec) -> tuple[int, int, int, int]:
    """Elements for each token of what a recurrence makes, of what it convolves, of its gates, and
    of what it gives."""
    made = spec.recurrence
    return (0, 0, 0, 0) if made is None else (made.made, made.channels, made.gates, made.out)


def _of_experts(spec: ModelSpec) -> int:
    """Elements for each token, at most, that a mixture of experts needs."""
    if spec.experts is None:
        return 0
    # What is read, and what comes out, of each expert and of all; and what is between.
    each = 2 * spec.hidden + 2 * spec.experts.width
    kept = 2 * spec.experts.count + 2 * spec.hidden + 3 * spec.experts.shared
    return spec.experts.router.chosen * each + kept
