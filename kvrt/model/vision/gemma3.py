"""Gemma 3's tower: SigLIP, whose patches are pooled by squares, and a projector.

    x = patches @ pixels + positions
    for each layer:
        x += o @ attention(qkv @ norm(x))
        x += down @ gelu(up @ norm(x))
    states = projection @ norm(pool(norm(x)))       one for each square of patches

Each image is computed by itself, so its states' bits depend on nothing else.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kvrt.model.checkpoint.floats import FloatTensors, Linear, Norm
from kvrt.model.config import ACTIVATIONS, MAX_HEADS
from kvrt.model.encoder.parts import attend, normed
from kvrt.model.families.family import MAX_WIDTH
from kvrt.model.families.windows import MAX_LAYERS
from kvrt.model.files.jsonfile import shown
from kvrt.model.spec import ModelSpec
from kvrt.model.vision.parts import TowerOps
from kvrt.model.vision.spec import (
    BILINEAR,
    VisionSpec,
    read_colours,
    read_fields,
    read_processor,
    read_scale,
)
from kvrt.spi import ITEM_BYTES, Device, DType

KIND = "siglip_vision_model"
MAX_SIDE = 1 << 13
PREFIXES = ("model.", "vision_tower.", "vision_model.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma3Vision(VisionSpec):
    """A SigLIP tower (Zhai et al. 2023, arXiv 2303.15343), and what makes a decoder's states of
    what it gives.

    Args:
        side: pixels of an image's side, which is made a square.
        tokens: states that an image becomes, in a square.
    """

    side: int
    tokens: int

    @property
    def patches(self) -> int:
        """Of an image's side."""
        return self.side // self.patch

    @property
    def pooled(self) -> int:
        """Patches of the side of a square that becomes one state."""
        return self.patches // math.isqrt(self.tokens)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        return self.side, self.side

    def grid(self, width: int, height: int) -> tuple[int, int]:
        return math.isqrt(self.tokens), math.isqrt(self.tokens)


def read_gemma3(folder: Path, decoder: ModelSpec) -> Gemma3Vision:
    """The tower of a model's folder.

    Raises:
        ModelError: a field is missing or out of range, or says what is not supported.
    """
    fields = read_fields(folder)
    own = fields.section("vision_config")
    if (kind := own.text("model_type", KIND)) != KIND:
        raise own.error("model_type", f"is {shown(kind)}; supported is {KIND}")
    if ACTIVATIONS.get(name := own.text("hidden_act", "gelu_pytorch_tanh")) != "gelu_tanh":
        raise own.error("hidden_act", f"is {shown(name)}; supported is gelu_pytorch_tanh")
    if own.integer("num_channels", 1, 4, 3) != 3:
        raise own.error("num_channels", "is not 3, which is all that is supported")
    hidden = own.integer("hidden_size", 1, MAX_WIDTH, 768)
    heads = own.integer("num_attention_heads", 1, MAX_HEADS, 12)
    if hidden % heads:
        raise own.error("num_attention_heads", f"is {heads}, which does not split {hidden}")
    side, patch = own.integer("image_size", 1, MAX_SIDE, 224), own.integer("patch_size", 1, 256, 16)
    tokens = fields.integer("mm_tokens_per_image", 1, MAX_SIDE, 256)
    if side // patch % math.isqrt(tokens) or math.isqrt(tokens) ** 2 != tokens:
        raise fields.error(
            "mm_tokens_per_image", f"is {tokens}, no square that {side // patch}^2 patches make"
        )

    def token(name: str, usual: int) -> int:
        newer = name.replace("_index", "_id")
        found: int = fields.integer(
            newer if fields.has(newer) else name, 0, decoder.vocab - 1, usual
        )
        return found

    processor = read_processor(folder, BILINEAR)
    if processor.has("size"):
        size = processor.section("size")
        for name in ("height", "width"):
            if size.integer(name, 1, MAX_SIDE) != side:
                raise size.error(name, f"is not the tower's image_size, {side}")
    image, begin = token("image_token_index", 262_144), token("boi_token_index", 255_999)
    return Gemma3Vision(
        hidden=hidden,
        intermediate=own.integer("intermediate_size", 1, MAX_WIDTH, 3072),
        heads=heads,
        layers=own.integer("num_hidden_layers", 1, MAX_LAYERS, 12),
        patch=patch,
        norm_eps=own.number("layer_norm_eps", 0.0, 1.0, 1e-6),
        out=decoder.hidden,
        mean=read_colours(processor, "image_mean", [0.5] * 3),
        std=read_colours(processor, "image_std", [0.5] * 3),
        scale=read_scale(processor),
        resample=BILINEAR,
        image=image,
        mark=begin,
        replaces=("\n\n", begin, image, token("eoi_token_index", 256_000), "\n\n"),
        alone=(begin,),
        together=True,
        side=side,
        tokens=tokens,
    )


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


class Gemma3Tower:
    """The tower on a device.

    Args:
        folder: of the model.
        spec: its shape.
        device: computes, with its own products if it has them.
        dtype: of its matrices.

    Raises:
        ModelError: a tensor is missing, of another shape, or not finite.
        CapacityError: they do not fit.
    """

    def __init__(self, folder: Path, spec: Gemma3Vision, device: Device, dtype: DType) -> None:
        self._spec = spec
        self._weights, self.content = _read(folder, spec, device, dtype)
        self._on = TowerOps(device, dtype)

    @staticmethod
    def nbytes(spec: Gemma3Vision, dtype: DType) -> int:
        """Bytes that the matrices take, which are all but a thousandth."""
        hidden, pixels = spec.hidden, 3 * spec.patch**2
        layer = 4 * hidden**2 + 2 * hidden * spec.intermediate
        numbers = layer * spec.layers + hidden * (pixels + spec.patches**2 + spec.out)
        return numbers * ITEM_BYTES[dtype]

    @torch.inference_mode()
    def states(self, pixels: Tensor) -> Tensor:
        """The states of an image, [tokens, out], on the device.

        Args:
            pixels: uint8 [3, side, side], on the host.
        """
        spec, w, linear = self._spec, self._weights, self._on.linear
        x = linear(self._on.place(self._patches(pixels)), *w.patches).add_(w.positions)
        for layer in w.layers:
            qkv = linear(self._norm(x, layer.attention_norm), *layer.qkv)
            x = linear(attend(qkv, spec.heads), *layer.o, x)
            wide = linear(self._norm(x, layer.mlp_norm), *layer.up)
            x = linear(F.gelu(wide, approximate="tanh"), *layer.down, x)
        side, pooled = spec.patches // spec.pooled, spec.pooled
        squares = self._norm(x, w.norm).view(side, pooled, side, pooled, spec.hidden)
        means = squares.float().mean((1, 3)).view(spec.tokens, spec.hidden).to(self._on.dtype)
        last = F.rms_norm(means.float(), (spec.hidden,), w.pooled_norm, spec.norm_eps)
        return linear(last.to(self._on.dtype), w.projection)

    def close(self) -> None:
        """Give the weights back. It computes no more."""
        del self._weights

    def _patches(self, pixels: Tensor) -> Tensor:
        """The pixels of each patch, [patches, 3 * patch * patch]."""
        count, patch = self._spec.patches, self._spec.patch
        used = self._on.values(pixels, self._spec)[:, : count * patch, : count * patch]
        squares = used.reshape(3, count, patch, count, patch)
        return squares.permute(1, 3, 0, 2, 4).reshape(count * count, -1)

    def _norm(self, x: Tensor, norm: Norm) -> Tensor:
        return normed(x, norm, self._spec.norm_eps, self._on.dtype)


def _read(
    folder: Path, spec: Gemma3Vision, device: Device, dtype: DType
) -> tuple[TowerWeights, str]:
    """The weights on a device, and a name for what they are."""
    files = FloatTensors(folder, _own)
    on = files.on(device, dtype, Gemma3Tower.nbytes(spec, dtype))
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
    projection = on.matrix(f"{projector}_input_projection_weight", hidden, spec.out)
    weights = TowerWeights(
        patches=Linear(pixels.flatten(1), on.vector(f"{patches}.bias", hidden)),
        positions=on.matrix("embeddings.position_embedding.weight", spec.patches**2, hidden),
        layers=tuple(layer(f"encoder.layers.{number}") for number in range(spec.layers)),
        norm=on.norm("post_layernorm", hidden),
        pooled_norm=on.vector(f"{projector}_soft_emb_norm.weight", hidden).add_(1.0),
        projection=projection.T.contiguous(),
    )
    return weights, files.content


def _own(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name
