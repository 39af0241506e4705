"""What a step of the decoder needs of a layer, gathered once."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kvrt.model.decoder.experts import AnyExperts
from kvrt.model.spec import LayerSpec, ModelSpec
from kvrt.model.weights.layers import LayerWeights
from kvrt.spi import AttentionParams, HeadNorm

Place = tuple[int, int]
"""Which of a step's batches a layer's pages are in, and which of that batch's layers it is."""


class Layer(NamedTuple):
    """One layer.

    Args:
        batch: which of the step's batches its keys and values are in, if it attends.
        number: which of that batch's layers it is.
        states: likewise, the first of those that its recurrence has, if it has one.
        state: likewise.
        rope: which of the model's rotations its queries and keys have.
        norm: of its queries and keys, before rotation.
        heat: multiplies each head of its rotated queries.
        whole: its heads are `ModelSpec.whole`.
    """

    weights: LayerWeights
    batch: int
    number: int
    attention: AttentionParams
    rope: int | None
    norm: HeadNorm | None
    heat: Tensor | None
    experts: AnyExperts | None
    whole: bool
    attends: bool
    feeds: bool
    states: int | None
    state: int

    @classmethod
    def of(
        cls,
        spec: ModelSpec,
        layer: LayerSpec,
        w: LayerWeights,
        places: Sequence[Place],
        experts: AnyExperts | None,
        torch_device: str,
    ) -> "Layer":
        """A layer of a model.

        Args:
            places: of its pages; first those it attends to.
        """
        batch, number = places[0] if layer.attends else (0, 0)
        states, state = places[layer.attends] if layer.recurrent else (None, 0)
        norm = heat = None
        if spec.qk_norm == "unit" and layer.rope is not None:
            ones = torch.ones(spec.head_dim, device=torch_device)
            norm = HeadNorm(ones, ones, spec.norm_eps)  # before rotation, as in "rotated" below
        if w.q_norm is not None and w.k_norm is not None:
            if spec.qk_norm == "heads":
                norm = HeadNorm(w.q_norm, w.k_norm, spec.norm_eps)
            if spec.qk_norm == "rotated":
                # Rotation keeps a head's length, so it may as well be normed before; and of what
                # the products of queries and keys are multiplied by, queries can have all.
                ones = torch.ones_like(w.q_norm)
                norm, heat = HeadNorm(ones, ones, spec.norm_eps), w.q_norm * w.k_norm
        scale = spec.attention_scale or spec.head_dim**-0.5
        return cls(
            weights=w,
            batch=batch,
            number=number,
            attention=AttentionParams(
                scale, layer.window, spec.attention_softcap, sink_logits=w.sinks
            ),
            rope=layer.rope,
            norm=norm,
            heat=heat,
            experts=experts,
            whole=spec.whole is not None and not layer.window,
            attends=layer.attends,
            feeds=layer.feeds,
            states=states,
            state=state,
        )
