"""Qwen2.5-VL's tower, most of whose layers attend within windows.

    x = patches @ pixels
    for each layer:
        x += o @ attention(qkv @ norm(x))           rotated by row and column
        x += down @ (silu(gate @ norm(x)) * (up @ norm(x)))
    states = last @ gelu(first @ norm(x))           one for each 2 x 2 patches

Patches of a window lie one behind the other.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kvrt.model.checkpoint.floats import FloatTensors, Linear
from kvrt.model.families.family import MAX_WIDTH
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
    activation="silu",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    least=56 * 56,
    most=28 * 28 * 1280,
    sizes={
        "hidden_size": 1280,
        "num_heads": 16,
        "intermediate_size": 3420,
        "depth": 32,
        "patch_size": 14,
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen25Vision(QwenVision):
    """Qwen2.5-VL's (Bai et al. 2025, arXiv 2502.13923).

    Args:
        window: patches of a window's side.
        whole: the layers that attend to all of an image.
    """

    window: int
    whole: tuple[int, ...]


def read_qwen25(folder: Path, decoder: ModelSpec) -> Qwen25Vision:
    """The tower of a model's folder.

    Raises:
        ModelError: as `read_shared`.
    """
    own, shared = read_shared(folder, decoder, USUAL)
    patch, merge = shared["patch"], shared["merge"]
    window = own.integer("window_size", 1, MAX_WIDTH, 112)
    if window < patch * merge:
        raise own.error("window_size", f"is {window}, less than {merge} patches of {patch}")
    return Qwen25Vision(
        **shared,
        window=window // merge // patch * merge,
        whole=tuple(own.items("fullatt_block_indexes", int, (7, 15, 23, 31))),
    )


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


class Qwen25Tower:
    """The tower on a device; the arguments and errors are those of `gemma3.Gemma3Tower`."""

    def __init__(self, folder: Path, spec: Qwen25Vision, device: Device, dtype: DType) -> None:
        self._spec = spec
        self._weights, self.content = _read(folder, spec, device, dtype)
        self._on = TowerOps(device, dtype)

    @staticmethod
    def nbytes(spec: Qwen25Vision, dtype: DType) -> int:
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
        patches = patches_of(pixels, spec, self._on).view(rows * columns, unit, -1)[order]
        x = linear(self._on.place(patches.flatten(0, 1)), w.patches)
        places = places_of(rows, columns, spec.merge)[order]
        rotation = rotation_of(places, spec, self._on)
        parts = [length * unit for length in lengths]
        for number, layer in enumerate(w.layers):
            qkv = linear(self._norm(x, layer.attention_norm), *layer.qkv)
            own = [len(x)] if number in spec.whole else parts
            x = linear(attend_within(qkv, spec.heads, rotation, own), *layer.o, x)
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


def _read(
    folder: Path, spec: Qwen25Vision, device: Device, dtype: DType
) -> tuple[TowerWeights, str]:
    """The weights on a device, and a name for what they are."""
    files = FloatTensors(folder, own_name)
    on = files.on(device, dtype, Qwen25Tower.nbytes(spec, dtype))
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
