"""What the towers of Qwen-VL have in common: images in their own size, turned by row and column.

Patches that become one state lie one behind the other.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kvrt.model.config import MAX_HEADS
from kvrt.model.decoder.ops import rotate
from kvrt.model.families.family import MAX_WIDTH
from kvrt.model.families.windows import MAX_LAYERS
from kvrt.model.files.jsonfile import Fields, shown
from kvrt.model.spec import ModelSpec
from kvrt.model.vision.parts import TowerOps
from kvrt.model.vision.spec import (
    BICUBIC,
    Colours,
    VisionSpec,
    read_colours,
    read_fields,
    read_processor,
    read_scale,
)
from kvrt.spi import Rotation

THETA = 10_000.0
NARROWEST = 200
"""Times that one side may be as long as the other, as in transformers."""
PREFIXES = ("model.", "visual.")


@dataclass(frozen=True, slots=True, kw_only=True)
class QwenVision(VisionSpec):
    """A tower of Qwen-VL.

    Args:
        merge: patches of the side of a square that becomes one state.
        frames: how often each patch is there, as in a film that stands still.
        least, most: pixels of an image.
    """

    merge: int
    frames: int
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


@dataclass(frozen=True, slots=True)
class Usual:
    """What a family's files mean where they say nothing.

    Args:
        activation: the only one that there is.
        mean, std: of colours.
        least, most: pixels of an image.
        sizes: fields of ``vision_config``.
    """

    activation: str
    mean: Colours
    std: Colours
    least: int
    most: int
    sizes: Mapping[str, int]


def read_shared(folder: Path, decoder: ModelSpec, usual: Usual) -> tuple[Fields, dict[str, Any]]:
    """The section of config.json about the tower, and what all of `QwenVision` it says.

    Raises:
        ModelError: a field is missing or out of range, or says what is not supported.
    """
    fields = read_fields(folder)
    own = fields.section("vision_config")
    if (name := own.text("hidden_act", usual.activation)) != usual.activation:
        raise own.error("hidden_act", f"is {shown(name)}; supported is {usual.activation}")

    def size(name: str, most: int) -> int:
        return own.integer(name, 1, most, usual.sizes[name])

    hidden, heads = size("hidden_size", MAX_WIDTH), size("num_heads", MAX_HEADS)
    if hidden % (4 * heads):
        raise own.error(
            "num_heads", f"is {heads}, which does not split {hidden} by rows and columns"
        )
    if own.integer("out_hidden_size", 1, MAX_WIDTH, decoder.hidden) != decoder.hidden:
        raise own.error("out_hidden_size", f"is not the decoder's width, {decoder.hidden}")
    processor = read_processor(folder, BICUBIC)
    least, most = _sizes(processor, usual)
    image = _token(fields, "image_token_id", 151_655, decoder)
    begin, end = (
        _token(fields, f"vision_{side}_token_id", number, decoder)
        for side, number in (("start", 151_652), ("end", 151_653))
    )
    return own, {
        "hidden": hidden,
        "intermediate": size("intermediate_size", MAX_WIDTH),
        "heads": heads,
        "layers": size("depth", MAX_LAYERS),
        "patch": size("patch_size", 256),
        "norm_eps": 1e-6,
        "out": decoder.hidden,
        "mean": read_colours(processor, "image_mean", usual.mean),
        "std": read_colours(processor, "image_std", usual.std),
        "scale": read_scale(processor),
        "resample": BICUBIC,
        "image": image,
        "mark": image,
        "replaces": (image,),
        "alone": (begin, image, end),
        "together": False,
        "channels": _channels(fields, decoder),
        "merge": own.integer("spatial_merge_size", 1, 16, 2),
        "frames": own.integer("temporal_patch_size", 1, 16, 2),
        "least": least,
        "most": most,
    }


def _sizes(processor: Fields, usual: Usual) -> tuple[int, int]:
    """The fewest pixels of an image, and the most: the older names come first."""
    size = processor.section("size") if processor.has("size") else Fields("", {})

    def pixels(older: str, newer: str, number: int) -> int:
        if processor.has(older):
            return processor.integer(older, 1, 1 << 30)
        return size.integer(newer, 1, 1 << 30, number)

    least = pixels("min_pixels", "shortest_edge", usual.least)
    return least, pixels("max_pixels", "longest_edge", usual.most)


def _token(fields: Fields, name: str, usual: int, decoder: ModelSpec) -> int:
    return fields.integer(name, 0, decoder.vocab - 1, usual)


def _channels(fields: Fields, decoder: ModelSpec) -> tuple[int, ...]:
    """By which position each pair of a head is rotated: in sections, one behind the other, or in
    turns, as far as there are pairs of the kind."""
    text = fields.section("text_config") if fields.has("text_config") else fields
    name = "rope_parameters" if text.has("rope_parameters") else "rope_scaling"
    sections = text.section(name).items("mrope_section", int)
    pairs = decoder.rope.width(decoder.head_dim) // 2
    if len(sections) != 3 or sum(sections) != pairs:
        raise text.error(f"{name}.mrope_section", f"is {sections}, which is not {pairs} in three")
    said = text.section(name)
    if not (said.has("mrope_interleaved") and said.flag("mrope_interleaved")):
        return tuple(channel for channel, count in enumerate(sections) for _ in range(count))
    return tuple(
        pair % 3 if pair % 3 and pair < 3 * sections[pair % 3] else 0 for pair in range(pairs)
    )


def patches_of(pixels: Tensor, spec: QwenVision, on: TowerOps) -> Tensor:
    """The pixels of each patch, those of one state one behind the other, [patches, 3 * frames *
    patch * patch].

    Args:
        pixels: uint8 [3, height, width], on the host.
    """
    values = on.values(pixels, spec)
    rows, columns = spec.grid(pixels.shape[2], pixels.shape[1])
    squares = values.view(3, rows, spec.merge, spec.patch, columns, spec.merge, spec.patch)
    ordered = squares.permute(1, 4, 2, 5, 0, 3, 6).unsqueeze(5)
    shape = (*ordered.shape[:5], spec.frames, *ordered.shape[6:])
    return ordered.expand(shape).reshape(rows * columns * spec.merge**2, -1)


def places_of(rows: int, columns: int, merge: int) -> Tensor:
    """The row and column of each patch, those of one state one behind the other: int64 [states,
    merge * merge, 2].

    Args:
        rows, columns: of states.
    """
    places = torch.cartesian_prod(torch.arange(rows * merge), torch.arange(columns * merge))
    squares = places.view(rows, merge, columns, merge, 2).transpose(1, 2)
    return squares.reshape(rows * columns, merge**2, 2)


def rotation_of(places: Tensor, spec: QwenVision, on: TowerOps) -> Rotation:
    """Of patches at some rows and columns, [..., 2], one for each patch and half a head."""
    dims = spec.hidden // spec.heads // 2
    frequencies = 1.0 / (THETA ** (torch.arange(0, dims, 2, dtype=torch.float) / dims))
    angles = (places.view(-1, 2)[..., None].float() * frequencies).flatten(1)
    return Rotation(on.floats(angles.cos()), on.floats(angles.sin()))


def attend_within(qkv: Tensor, heads: int, rotation: Rotation, parts: Sequence[int]) -> Tensor:
    """Attention of patches to those of the same part, [patches, hidden].

    Args:
        qkv: [patches, 3 * hidden].
        parts: how many patches each has.
    """
    each = qkv.view(len(qkv), 3, heads, -1)
    for rotated in (each[:, 0], each[:, 1]):
        rotate(rotated, rotation)
    attended = []
    for own in torch.split(each, list(parts)):
        q, k, v = own.permute(1, 2, 0, 3).contiguous().unbind(0)
        attended.append(F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1))
    return torch.cat(attended)


def own_name(name: str) -> str:
    """A tensor's name in the files, without what stands before the tower's own."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name
