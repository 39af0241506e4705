"""Qwen3-VL's tower, whose layers in between add to the decoder's first layers, too; and Qwen3.5's,
whose do not.

x = patches @ pixels + positions                learned for a square, and stretched
for each layer:
    x += o @ attention(qkv @ norm(x))           rotated by row and column
    x += down @ gelu(up @ norm(x))
states = last @ gelu(first @ norm(x))           one for each 2 x 2 patches; likewise, of some
                                                layers, what the decoder's layers get added
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kvrt.model.checkpoint.floats import FloatTensors, Linear, Norm
from kvrt.model.encoder.parts import normed
from kvrt.model.spec import ModelSpec
from kvrt.model.vision.parts import TowerOps
from kvrt.model.vision.qwen import (
    QwenVision,
    Usual,
    attend_within,
    own_name,
    patches_of,
    places_of,
    read_shared,
    rotation_of,
)
from kvrt.spi import ITEM_BYTES, Device, DType

USUAL = Usual(
    activation="gelu_pytorch_tanh",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    least=256 * 256,
    most=4096 * 4096,
    sizes={
        "hidden_size": 1152,
        "num_heads": 16,
        "intermediate_size": 4304,
        "depth": 27,
        "patch_size": 16,
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen3Vision(QwenVision):
    """Qwen3-VL's (Bai et al. 2025, arXiv 2511.21631).

    Args:
        side: positions of the side of the square that they are learned for.
        between: the layers after which states are made for the decoder's first layers.
    """

    side: int
    between: tuple[int, ...]


def read_qwen3(
    folder: Path, decoder: ModelSpec, between: tuple[int, ...] = (8, 16, 24)
) -> Qwen3Vision:
    """The tower of a model's folder.

    Args:
        between: see `Qwen3Vision`, where the folder says nothing of it.

    Raises:
        ModelError: as `read_shared`.
    """
    own, shared = read_shared(folder, decoder, USUAL)
    positions = own.integer("num_position_embeddings", 1, 1 << 20, 2304)
    if math.isqrt(positions) ** 2 != positions:
        raise own.error("num_position_embeddings", f"is {positions}, which is no square")
    between = tuple(own.items("deepstack_visual_indexes", int, between))
    if len(between) > len(decoder.layers):
        raise own.error("deepstack_visual_indexes", "has more than the decoder has layers")
    return Qwen3Vision(**shared, deep=len(between), side=math.isqrt(positions), between=between)


class Merger(NamedTuple):
    """What makes states of patches.

    Args:
        norm: of each patch, or of those of a state together.
    """

    norm: Norm
    first: Linear
    last: Linear


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
    """All weights of a tower.

    Args:
        patches: of a patch's pixels.
        positions: [side * side, hidden].
        between: of each layer after which states are made.
    """

    patches: Linear
    positions: Tensor
    layers: tuple[TowerLayer, ...]
    merger: Merger
    between: tuple[Merger, ...]


class Qwen3Tower:
    """The tower on a device; the arguments and errors are those of `gemma3.Gemma3Tower`."""

    def __init__(self, folder: Path, spec: Qwen3Vision, device: Device, dtype: DType) -> None:
        self._spec = spec
        self._weights, self.content = _read(folder, spec, device, dtype)
        self._on = TowerOps(device, dtype)

    @staticmethod
    def nbytes(spec: Qwen3Vision, dtype: DType) -> int:
        """Bytes that the matrices take, which are all but a thousandth."""
        hidden, wide = spec.hidden, spec.hidden * spec.merge**2
        layer = 4 * hidden**2 + 2 * hidden * spec.intermediate
        pixels = 3 * spec.frames * spec.patch**2
        mergers = (1 + spec.deep) * wide * (wide + spec.out)
        numbers = layer * spec.layers + hidden * (pixels + spec.side**2) + mergers
        return numbers * ITEM_BYTES[dtype]

    @torch.inference_mode()
    def states(self, pixels: Tensor) -> Tensor:
        """The states of an image, and behind each what the decoder's first layers get added, on the
        device: [rows * columns, (1 + deep) * out].

        Args:
            pixels: uint8 [3, height, width], on the host.
        """
        spec, w, linear = self._spec, self._weights, self._on.linear
        places = places_of(*spec.grid(pixels.shape[2], pixels.shape[1]), spec.merge)
        x = linear(self._on.place(patches_of(pixels, spec, self._on)), *w.patches)
        x.add_(self._positions(places).to(x.dtype))
        rotation = rotation_of(places, spec, self._on)
        made: list[Tensor] = []
        for number, layer in enumerate(w.layers):
            qkv = linear(self._norm(x, layer.attention_norm), *layer.qkv)
            x = linear(attend_within(qkv, spec.heads, rotation, [len(x)]), *layer.o, x)
            wide = linear(self._norm(x, layer.mlp_norm), *layer.up)
            x = linear(F.gelu(wide, approximate="tanh"), *layer.down, x)
            if number in spec.between:
                merger = w.between[spec.between.index(number)]
                made.append(self._merge(self._norm(x.view(len(places), -1), merger.norm), merger))
        return torch.cat([self._merge(self._norm(x, w.merger.norm), w.merger), *made], 1)

    def close(self) -> None:
        """Give the weights back. It computes no more."""
        del self._weights

    def _merge(self, x: Tensor, merger: Merger) -> Tensor:
        linear, wide = self._on.linear, self._spec.hidden * self._spec.merge**2
        return linear(F.gelu(linear(x.view(-1, wide), *merger.first)), *merger.last)

    def _positions(self, places: Tensor) -> Tensor:
        """Of patches at some rows and columns, [..., 2], between those that were learned: [patches,
        hidden]."""
        side = self._spec.side
        last = places.amax((0, 1)).clamp(min=1)
        at = places.view(-1, 2).float() * ((side - 1) / last)
        low = at.floor().long()
        high, part = (low + 1).clamp(max=side - 1), at - low
        learned, found = self._weights.positions, torch.zeros(())
        for rows, of_rows in ((low, 1 - part), (high, part)):
            for columns, of_columns in ((low, 1 - part), (high, part)):
                index = rows[:, 0] * side + columns[:, 1]
                weight = self._on.floats(of_rows[:, 0] * of_columns[:, 1])
                found = found.to(weight.device) + (
                    learned[index.to(learned.device)].float() * weight[:, None]
                )
        return found

    def _norm(self, x: Tensor, norm: Norm) -> Tensor:
        return normed(x, norm, self._spec.norm_eps, self._on.dtype)


def _read(
    folder: Path, spec: Qwen3Vision, device: Device, dtype: DType
) -> tuple[TowerWeights, str]:
    """The weights on a device, and a name for what they are."""
    files = FloatTensors(folder, own_name)
    on = files.on(device, dtype, Qwen3Tower.nbytes(spec, dtype))
    hidden, wide = spec.hidden, spec.hidden * spec.merge**2

    def layer(at: str) -> TowerLayer:
        return TowerLayer(
            attention_norm=on.norm(f"{at}.norm1", hidden),
            qkv=on.linear(f"{at}.attn.qkv", 3 * hidden, hidden),
            o=on.linear(f"{at}.attn.proj", hidden, hidden),
            mlp_norm=on.norm(f"{at}.norm2", hidden),
            up=on.linear(f"{at}.mlp.linear_fc1", spec.intermediate, hidden),
            down=on.linear(f"{at}.mlp.linear_fc2", hidden, spec.intermediate),
        )

    def merger(at: str, width: int) -> Merger:
        return Merger(
            norm=on.norm(f"{at}.norm", width),
            first=on.linear(f"{at}.linear_fc1", wide, wide),
            last=on.linear(f"{at}.linear_fc2", spec.out, wide),
        )

    patches = "patch_embed.proj"
    pixels = on.matrix(f"{patches}.weight", hidden, 3, spec.frames, spec.patch, spec.patch)
    weights = TowerWeights(
        patches=Linear(pixels.flatten(1), on.vector(f"{patches}.bias", hidden)),
        positions=on.matrix("pos_embed.weight", spec.side**2, hidden),
        layers=tuple(layer(f"blocks.{number}") for number in range(spec.layers)),
        merger=merger("merger", hidden),
        between=tuple(
            merger(f"deepstack_merger_list.{number}", wide) for number in range(spec.deep)
        ),
    )
    return weights, files.content
