"""Qwen2.5-VL's tower, which sees images in their own size.

    x = patches @ pixels
    for each layer:
        x += o @ attention(qkv @ norm(x))           rotated by row and column; most layers attend
        x += down @ (silu(gate @ norm(x)) * (up @ norm(x)))         within windows of the image
    states = last @ gelu(first @ norm(x))           one for each 2 x 2 patches

Patches that become one state lie one behind the other, and so do those of a window.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kvrt.model.checkpoint.floats import FloatTensors, Linear
from kvrt.model.config import MAX_HEADS
from kvrt.model.decoder.ops import rotate
from kvrt.model.families.family import MAX_WIDTH
from kvrt.model.families.windows import MAX_LAYERS
from kvrt.model.files.jsonfile import Fields, shown
from kvrt.model.spec import ModelSpec
from kvrt.model.vision.parts import TowerOps
from kvrt.model.vision.spec import (
    BICUBIC,
    VisionSpec,
    read_colours,
    read_fields,
    read_processor,
    read_scale,
)
from kvrt.spi import ITEM_BYTES, Device, DType, Rotation

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
THETA = 10_000.0
NARROWEST = 200
"""Times that one side may be as long as the other, as in transformers."""
PREFIXES = ("model.", "visual.")


@dataclass(frozen=True, slots=True, kw_only=True)
class QwenVision(VisionSpec):
    """Qwen2.5-VL's (Bai et al. 2025, arXiv 2502.13923).

    Args:
        merge: patches of the side of a square that becomes one state.
        frames: how often each patch is there, as in a film that stands still.
        window: patches of a window's side.
        whole: the layers that attend to all of an image.
        least, most: pixels of an image.
    """

    merge: int
    frames: int
    window: int
    whole: tuple[int, ...]
    least: int
    most: int

    def resized(self, width: int, height: int) -> tuple[int, int]:
        if max(width, height) > NARROWEST * min(width, height):
            raise ValueError(f"is more than {NARROWEST} times as long on one side as on the other")
        unit = self.patch * self.merge
        sides = [round(side / unit) * unit for side in (width, height)]
        if math.prod(sides) > self.most:
            shrink = math.sqrt(width * height / self.most)
            sides = [max(unit, math.floor(s / shrink / unit) * unit) for s in (width, height)]
        elif math.prod(sides) < self.least:
            grow = math.sqrt(self.least / (width * height))
            sides = [math.ceil(side * grow / unit) * unit for side in (width, height)]
        return sides[0], sides[1]

    def grid(self, width: int, height: int) -> tuple[int, int]:
        unit = self.patch * self.merge
        return height // unit, width // unit


def read_qwen(folder: Path, decoder: ModelSpec) -> QwenVision:
    """The tower of a model's folder.

    Raises:
        ModelError: a field is missing or out of range, or says what is not supported.
    """
    fields = read_fields(folder)
    own = fields.section("vision_config")
    if (name := own.text("hidden_act", "silu")) != "silu":
        raise own.error("hidden_act", f"is {shown(name)}; supported is silu")
    hidden = own.integer("hidden_size", 1, MAX_WIDTH, 1280)
    heads = own.integer("num_heads", 1, MAX_HEADS, 16)
    if hidden % (4 * heads):
        raise own.error(
            "num_heads", f"is {heads}, which does not split {hidden} by rows and columns"
        )
    if own.integer("out_hidden_size", 1, MAX_WIDTH, decoder.hidden) != decoder.hidden:
        raise own.error("out_hidden_size", f"is not the decoder's width, {decoder.hidden}")
    patch, merge = (
        own.integer("patch_size", 1, 256, 14),
        own.integer("spatial_merge_size", 1, 16, 2),
    )
    layers = own.integer("depth", 1, MAX_LAYERS, 32)
    window = own.integer("window_size", 1, MAX_WIDTH, 112)
    if window < patch * merge:
        raise own.error("window_size", f"is {window}, less than {merge} patches of {patch}")
    processor = read_processor(folder, BICUBIC)
    least, most = _sizes(processor)
    image = _token(fields, "image_token_id", 151_655, decoder)
    begin, end = (
        _token(fields, f"vision_{side}_token_id", usual, decoder)
        for side, usual in (("start", 151_652), ("end", 151_653))
    )
    return QwenVision(
        hidden=hidden,
        intermediate=own.integer("intermediate_size", 1, MAX_WIDTH, 3420),
        heads=heads,
        layers=layers,
        patch=patch,
        norm_eps=1e-6,
        out=decoder.hidden,
        mean=read_colours(processor, "image_mean", MEAN),
        std=read_colours(processor, "image_std", STD),
        scale=read_scale(processor),
        resample=BICUBIC,
        image=image,
        mark=image,
        replaces=(image,),
        alone=(begin, image, end),
        together=False,
        channels=_channels(fields, decoder),
        merge=merge,
        frames=own.integer("temporal_patch_size", 1, 16, 2),
        window=window // merge // patch * merge,
        whole=tuple(own.items("fullatt_block_indexes", int, (7, 15, 23, 31))),
        least=least,
        most=most,
    )


def _sizes(processor: Fields) -> tuple[int, int]:
    """The fewest pixels of an image, and the most: the older names come first."""
    size = processor.section("size") if processor.has("size") else Fields("", {})

    def pixels(older: str, newer: str, usual: int) -> int:
        if processor.has(older):
            return processor.integer(older, 1, 1 << 30)
        return size.integer(newer, 1, 1 << 30, usual)

    least = pixels("min_pixels", "shortest_edge", 56 * 56)
    return least, pixels("max_pixels", "longest_edge", 28 * 28 * 1280)


def _token(fields: Fields, name: str, usual: int, decoder: ModelSpec) -> int:
    return fields.integer(name, 0, decoder.vocab - 1, usual)


def _channels(fields: Fields, decoder: ModelSpec) -> tuple[int, ...]:
    """By which position each pair of a head is rotated: sections, one behind the other."""
    text = fields.section("text_config") if fields.has("text_config") else fields
    name = "rope_parameters" if text.has("rope_parameters") else "rope_scaling"
    sections = text.section(name).items("mrope_section", int)
    pairs = decoder.rope.width(decoder.head_dim) // 2
    if len(sections) != 3 or sum(sections) != pairs:
        raise text.error(f"{name}.mrope_section", f"is {sections}, which is not {pairs} in three")
    return tuple(channel for channel, count in enumerate(sections) for _ in range(count))


class TowerLayer(NamedTuple):
    """The weights of a layer; norms are float32 [hidden].

    Args:
        qkv: the rows of queries, keys and values.
        gate_up: the rows of both.
    """

    attention_norm: Tensor
    qkv: Linear
    o: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


class TowerWeights(NamedTuple):
    """All weights of a tower.

    Args:
        patches: [hidden, 3 * frames * patch * patch].
        first, last: of what makes states of patches.
    """

    patches: Tensor
    layers: tuple[TowerLayer, ...]
    norm: Tensor
    first: Linear
    last: Linear


class QwenTower:
    """The tower on a device; the arguments and errors are those of `gemma3.Gemma3Tower`."""

    def __init__(self, folder: Path, spec: QwenVision, device: Device, dtype: DType) -> None:
        self._spec = spec
        self._weights, self.content = _read(folder, spec, device, dtype)
        self._on = TowerOps(device, dtype)

    @staticmethod
    def nbytes(spec: QwenVision, dtype: DType) -> int:
        """Bytes that the matrices take, which are all but a thousandth."""
        hidden, wide = spec.hidden, spec.hidden * spec.merge**2
        layer = 4 * hidden**2 + 3 * hidden * spec.intermediate
        pixels = 3 * spec.frames * spec.patch**2
        numbers = layer * spec.layers + hidden * pixels + wide * (wide + spec.out)
        return numbers * ITEM_BYTES[dtype]

    @torch.inference_mode()
    def states(self, pixels: Tensor) -> Tensor:
        """The states of an image, [rows * columns, out], on the device.

        Args:
            pixels: uint8 [3, height, width], on the host.
        """
        spec, w, linear = self._spec, self._weights, self._on.linear
        rows, columns = spec.grid(pixels.shape[2], pixels.shape[1])
        order, lengths = windows(rows, columns, spec.window // spec.merge)
        unit = spec.merge**2
        patches = self._patches(pixels).view(rows * columns, unit, -1)[order]
        x = linear(self._on.place(patches.flatten(0, 1)), w.patches)
        rotation = self._rotation(rows, columns, order)
        parts = [length * unit for length in lengths]
        for number, layer in enumerate(w.layers):
            qkv = linear(self._norm(x, layer.attention_norm), *layer.qkv)
            own = [len(x)] if number in spec.whole else parts
            x = linear(self._attend(qkv, rotation, own), *layer.o, x)
            gate, up = linear(self._norm(x, layer.mlp_norm), *layer.gate_up).chunk(2, -1)
            x = linear(F.silu(gate) * up, *layer.down, x)
        wide = self._norm(x, w.norm).view(rows * columns, -1)
        made = linear(F.gelu(linear(wide, *w.first)), *w.last)
        states = torch.empty_like(made)
        states[order.to(states.device)] = made
        return states

    def close(self) -> None:
        """Give the weights back. It computes no more."""
        del self._weights

    def _patches(self, pixels: Tensor) -> Tensor:
        """The pixels of each patch, those of one state one behind the other, [patches, 3 * frames *
        patch * patch]."""
        spec = self._spec
        values = self._on.values(pixels, spec)
        rows, columns = spec.grid(pixels.shape[2], pixels.shape[1])
        squares = values.view(3, rows, spec.merge, spec.patch, columns, spec.merge, spec.patch)
        ordered = squares.permute(1, 4, 2, 5, 0, 3, 6).unsqueeze(5)
        shape = (*ordered.shape[:5], spec.frames, *ordered.shape[6:])
        return ordered.expand(shape).reshape(rows * columns * spec.merge**2, -1)

    def _rotation(self, rows: int, columns: int, order: Tensor) -> Rotation:
        """Of patches, by row and column, [patches, head / 2]."""
        merge, dims = self._spec.merge, self._spec.hidden // self._spec.heads // 2
        frequencies = 1.0 / (THETA ** (torch.arange(0, dims, 2, dtype=torch.float) / dims))
        places = torch.cartesian_prod(torch.arange(rows * merge), torch.arange(columns * merge))
        squares = places.view(rows, merge, columns, merge, 2).transpose(1, 2)
        at = squares.reshape(rows * columns, merge**2, 2)[order].view(-1, 2)
        angles = (at[..., None].float() * frequencies).flatten(1)
        return Rotation(self._on.floats(angles.cos()), self._on.floats(angles.sin()))

    def _attend(self, qkv: Tensor, rotation: Rotation, parts: Sequence[int]) -> Tensor:
        """Attention of patches to those of the same part, [patches, hidden].

        Args:
            qkv: [patches, 3 * hidden].
            parts: how many patches each has.
        """
        heads = qkv.view(len(qkv), 3, self._spec.heads, -1)
        for each in (heads[:, 0], heads[:, 1]):
            rotate(each, rotation)
        attended = []
        for own in torch.split(heads, list(parts)):
            q, k, v = own.permute(1, 2, 0, 3).contiguous().unbind(0)
            attended.append(F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1))
        return torch.cat(attended)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        made = F.rms_norm(x.float(), weight.shape, weight, self._spec.norm_eps)
        return made.to(self._on.dtype)


def windows(rows: int, columns: int, side: int) -> tuple[Tensor, list[int]]:
    """The states of an image in the order of its windows, int64 [rows * columns]; and how many each
    window has. Windows at the lower and the right edge may be smaller.

    Args:
        side: states of a window's side.
    """
    index = torch.arange(rows * columns).view(rows, columns)
    bands = torch.split(index, side)
    found = [part.flatten() for band in bands for part in torch.split(band, side, 1)]
    return torch.cat(found), [len(part) for part in found]


def _read(folder: Path, spec: QwenVision, device: Device, dtype: DType) -> tuple[TowerWeights, str]:
    """The weights on a device, and a name for what they are."""
    files = FloatTensors(folder, _own)
    on = files.on(device, dtype, QwenTower.nbytes(spec, dtype))
    hidden, wide = spec.hidden, spec.hidden * spec.merge**2

    def layer(at: str) -> TowerLayer:
        gate, up = (
            on.linear(f"{at}.mlp.{part}_proj", spec.intermediate, hidden) for part in ("gate", "up")
        )
        return TowerLayer(
            attention_norm=on.vector(f"{at}.norm1.weight", hidden),
            qkv=on.linear(f"{at}.attn.qkv", 3 * hidden, hidden),
            o=on.linear(f"{at}.attn.proj", hidden, hidden),
            mlp_norm=on.vector(f"{at}.norm2.weight", hidden),
            gate_up=Linear(*(torch.cat(both) for both in zip(gate, up, strict=True))),
            down=on.linear(f"{at}.mlp.down_proj", hidden, spec.intermediate),
        )

    pixels = on.matrix("patch_embed.proj.weight", hidden, 3, spec.frames, spec.patch, spec.patch)
    weights = TowerWeights(
        patches=pixels.flatten(1),
        layers=tuple(layer(f"blocks.{number}") for number in range(spec.layers)),
        norm=on.vector("merger.ln_q.weight", hidden),
        first=on.linear("merger.mlp.0", wide, wide),
        last=on.linear("merger.mlp.2", spec.out, wide),
    )
    return weights, files.content


def _own(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name
