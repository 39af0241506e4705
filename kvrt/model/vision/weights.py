"""The weights of a vision tower, read from safetensors files.

Names are those of the model's files, old and new; what else is there, such as a head of the tower,
is not read.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kvrt.model.checkpoint.floats import FloatTensors, Linear, Norm
from kvrt.model.vision.spec import VisionSpec
from kvrt.spi import ITEM_BYTES, Device, DType

PREFIXES = ("model.", "vision_tower.", "vision_model.")


class TowerLayer(NamedTuple):
    """The weights of a layer.

    Args:
        qkv: the rows of queries, keys and values.
    """

    attention_norm: Norm
    qkv: Linear
    o: Linear
    mlp_norm: Norm
    up: Linear
    down: Linear


class TowerWeights(NamedTuple):
    """All weights of a tower, and of the projector behind it.

    Args:
        patches: of a patch's pixels: colours, then rows.
        positions: [patches of an image, hidden].
        pooled_norm: float32 [hidden], what it differs from 1 by added.
        projection: [out, hidden].
    """

    patches: Linear
    positions: Tensor
    layers: tuple[TowerLayer, ...]
    norm: Norm
    pooled_norm: Tensor
    projection: Tensor


def read_tower(
    folder: Path, spec: VisionSpec, device: Device, dtype: DType
) -> tuple[TowerWeights, str]:
    """The weights on a device, and a name for what they are.

    Raises:
        ModelError: a tensor is missing, of another shape, or not finite.
        CapacityError: they do not fit.
    """
    files = FloatTensors(folder, _own)
    on = files.on(device, dtype, tower_bytes(spec, dtype))
    hidden = spec.hidden

    def layer(at: str) -> TowerLayer:
        parts = [on.linear(f"{at}.self_attn.{part}_proj", hidden, hidden) for part in "qkv"]
        return TowerLayer(
            attention_norm=on.norm(f"{at}.layer_norm1", hidden),
            qkv=Linear(*(torch.cat(each) for each in zip(*parts, strict=True))),
            o=on.linear(f"{at}.self_attn.out_proj", hidden, hidden),
            mlp_norm=on.norm(f"{at}.layer_norm2", hidden),
            up=on.linear(f"{at}.mlp.fc1", spec.intermediate, hidden),
            down=on.linear(f"{at}.mlp.fc2", hidden, spec.intermediate),
        )

    patches = "embeddings.patch_embedding"
    pixels = on.matrix(f"{patches}.weight", hidden, 3, spec.patch, spec.patch)
    projector = "multi_modal_projector.mm"
    weights = TowerWeights(
        patches=Linear(pixels.flatten(1), on.vector(f"{patches}.bias", hidden)),
        positions=on.matrix("embeddings.position_embedding.weight", spec.patches**2, hidden),
        layers=tuple(layer(f"encoder.layers.{number}") for number in range(spec.layers)),
        norm=on.norm("post_layernorm", hidden),
        pooled_norm=on.vector(f"{projector}_soft_emb_norm.weight", hidden).add_(1.0),
        projection=on.matrix(
            f"{projector}_input_projection_weight", hidden, spec.out
        ).T.contiguous(),
    )
    return weights, files.content


def tower_bytes(spec: VisionSpec, dtype: DType) -> int:
    """Bytes that the matrices take, which are all but a thousandth."""
    hidden, pixels = spec.hidden, 3 * spec.patch**2
    layer = 4 * hidden**2 + 2 * hidden * spec.intermediate
    numbers = layer * spec.layers + hidden * (pixels + spec.patches**2 + spec.out)
    return numbers * ITEM_BYTES[dtype]


def _own(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name
