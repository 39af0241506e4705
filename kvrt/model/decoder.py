"""The decoder: one transformer for every supported architecture, driven by its spec.

    x = embedding[tokens]
    for each layer:
        q, k, v = qkv @ norm(x)         rotated; k and v go to the KV pages
        x += o @ attention(q, pages)
        x += down @ (act(gate @ norm(x)) * (up @ norm(x)))
    logits = head @ norm(x)             for the rows that were asked for

It holds no state between steps: the KV pages are the only memory, and they belong to the cache.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kvrt.model.ops import PositionedPlan, TorchOps, gate, positions_of
from kvrt.model.rope import rotation_table
from kvrt.model.spec import LayerSpec, ModelSpec
from kvrt.model.weights import LayerWeights, Weights
from kvrt.spi import AttentionBatch, AttentionParams, Device, DType, FusedOps, HeadNorm, Rotation


class _Layer(NamedTuple):
    """What a step needs of a layer, gathered once."""

    weights: LayerWeights
    attention: AttentionParams
    rotation: Rotation | None
    norm: HeadNorm | None


class Decoder:
    """A model on a device.

    Args:
        spec: its shape.
        weights: its weights, on the device.
        device: computes, with its own `FusedOps` if it has them and in plain torch if not.
        dtype: of the weights; activations have it too if the device computes in it, and
            otherwise the dtype the device prefers.
        max_positions: the longest context that will be asked for.
    """

    def __init__(
        self, spec: ModelSpec, weights: Weights, device: Device, dtype: DType, max_positions: int
    ) -> None:
        self.spec = spec
        self.weights = weights
        self.max_positions = max_positions
        computes = device.info.compute_dtypes
        self.dtype: DType = dtype if dtype in computes else computes[0]
        self._torch_dtype: torch.dtype = getattr(torch, self.dtype)
        self._torch_device = device.info.torch_device
        self._attention = device.attention
        fused = device.extension(FusedOps)  # type: ignore[type-abstract]
        self._in_torch = fused is None
        self._ops = TorchOps(device.attention) if fused is None else fused
        rotation = rotation_table(spec.rope, spec.head_dim, max_positions, self._torch_device)
        self._layers = [
            self._layer(layer, w, rotation)
            for layer, w in zip(spec.layers, weights.layers, strict=True)
        ]

    def forward(self, tokens: Tensor, batch: AttentionBatch, logits_rows: Tensor) -> Tensor:
        """One step: store the tokens' keys and values, and compute the logits asked for.

        Args:
            tokens: int32 or int64 [tokens], on the host; all sequences, one after the other.
            batch: where each sequence's pages are, and which of the tokens are its own.
            logits_rows: int32 or int64 [rows], on the host; the tokens whose logits are wanted.

        Returns:
            float32 [rows, vocab], on the device.
        """
        ops, eps = self._ops, self.spec.norm_eps
        count = tokens.numel()
        heads, kv_heads, head_dim = self.spec.heads, self.spec.kv_heads, self.spec.head_dim
        split = (heads, kv_heads, kv_heads)
        run = self._attention.run
        plan = self._attention.plan(batch)
        ops_plan: object = plan
        if self._in_torch:
            ops_plan = PositionedPlan(plan, positions_of(batch).to(self._torch_device))
        x = F.embedding(tokens.to(self._torch_device), self.weights.embedding)
        x = x.to(self._torch_dtype)
        # One buffer serves every layer: its reader is always done before its next writer.
        attended = torch.empty(
            count, heads, head_dim, dtype=self._torch_dtype, device=self._torch_device
        )
        attended_rows = attended.view(count, heads * head_dim)
        for index, (w, attention, rotation, norm) in enumerate(self._layers):
            qkv = ops.linear(ops.rms_norm(x, w.attention_norm, eps), w.qkv, w.qkv_bias)
            q, k, v = qkv.view(count, -1, head_dim).split_with_sizes(split, 1)
            ops.rotate_append(ops_plan, index, q, k, v, rotation, norm)
            run(plan, index, q, attended, attention)
            x = ops.linear(attended_rows, w.o, w.o_bias, x)
            x = ops.linear(self._gated(ops.rms_norm(x, w.mlp_norm, eps), w), w.down, w.down_bias, x)
        if not logits_rows.numel():
            return torch.empty(0, self.spec.vocab, device=self._torch_device)
        x = x.index_select(0, logits_rows.to(self._torch_device))
        x = ops.rms_norm(x, self.weights.final_norm, eps)
        return ops.linear(x, self.weights.head).float()

    def _gated(self, x: Tensor, w: LayerWeights) -> Tensor:
        if w.gate_up_bias is None:
            return self._ops.gated_linear(x, w.gate_up, self.spec.activation)
        return gate(self._ops.linear(x, w.gate_up, w.gate_up_bias), self.spec.activation)

    def _layer(self, layer: LayerSpec, w: LayerWeights, rotation: Rotation) -> _Layer:
        norm = None
        if w.q_norm is not None and w.k_norm is not None:
            norm = HeadNorm(w.q_norm, w.k_norm, self.spec.norm_eps)
        scale = self.spec.head_dim**-0.5
        return _Layer(
            weights=w,
            attention=AttentionParams(scale, layer.window),
            rotation=rotation if layer.rope else None,
            norm=norm,
        )
