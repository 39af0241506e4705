"""What a vision tower is, and how config.json and the image processor's file say it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kvrt.model.config import ACTIVATIONS, MAX_HEADS
from kvrt.model.families.family import MAX_WIDTH
from kvrt.model.families.windows import MAX_LAYERS
from kvrt.model.files.jsonfile import Fields, read_object, shown
from kvrt.model.spec import ModelSpec

TOWERS: Mapping[str, str] = {"Gemma3ForConditionalGeneration": "siglip_vision_model"}
"""Architectures whose towers are known, and what their ``vision_config`` is called."""

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Files that say how images are prepared; in the second it is a section."""

MAX_SIDE = 1 << 13
BILINEAR = 2


@dataclass(frozen=True, slots=True)
class VisionSpec:
    """A SigLIP tower (Zhai et al. 2023, arXiv 2303.15343), and what makes a decoder's states of
    what it gives: Gemma 3's projector, which pools squares of patches.

    Args:
        hidden: width of a patch's state.
        intermediate: width of its feed-forward layer.
        heads: of its attention.
        layers: how many there are.
        side: pixels of an image's side, which is a square.
        patch: pixels of a patch's side.
        norm_eps: added to the variance in every norm.
        tokens: states that an image becomes, in a square.
        out: width of those.
        mean, std: of each colour, of values from 0 to 1.
        scale: what a pixel is multiplied by to be such a value.
        image: the token that stands at the places of an image's states.
        begin, end: the tokens before and after these.
    """

    hidden: int
    intermediate: int
    heads: int
    layers: int
    side: int
    patch: int
    norm_eps: float
    tokens: int
    out: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float
    image: int
    begin: int
    end: int

    @property
    def patches(self) -> int:
        """Of an image's side."""
        return self.side // self.patch

    @property
    def pooled(self) -> int:
        """Patches of the side of a square that becomes one state."""
        return self.patches // math.isqrt(self.tokens)


def sees(folder: Path) -> bool:
    """Whether the model in a folder has a tower of a kind that is known."""
    fields = _fields(folder)
    return fields.has("vision_config") and bool(_named(fields))


def read_vision(folder: Path, decoder: ModelSpec) -> VisionSpec:
    """The tower of a model that `sees`.

    Raises:
        ModelError: a field is missing or out of range, or says what is not supported.
    """
    fields = _fields(folder)
    known = _named(fields)
    own = fields.section("vision_config")
    if (kind := own.text("model_type", TOWERS[known])) != TOWERS[known]:
        raise own.error("model_type", f"is {shown(kind)}; supported is {TOWERS[known]}")
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

    mean, std, scale = _preparation(folder, side)
    return VisionSpec(
        hidden=hidden,
        intermediate=own.integer("intermediate_size", 1, MAX_WIDTH, 3072),
        heads=heads,
        layers=own.integer("num_hidden_layers", 1, MAX_LAYERS, 12),
        side=side,
        patch=patch,
        norm_eps=own.number("layer_norm_eps", 0.0, 1.0, 1e-6),
        tokens=tokens,
        out=decoder.hidden,
        mean=mean,
        std=std,
        scale=scale,
        image=token("image_token_index", 262_144),
        begin=token("boi_token_index", 255_999),
        end=token("eoi_token_index", 256_000),
    )


def _fields(folder: Path) -> Fields:
    return Fields(str(folder / "config.json"), read_object(folder / "config.json"))


def _named(fields: Fields) -> str:
    """The architecture with a known tower; empty: it is another one."""
    names = fields.values().get("architectures")
    return next((name for name in names if name in TOWERS), "") if isinstance(names, list) else ""


def _preparation(folder: Path, side: int) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Mean and deviation of colours, and what pixels are multiplied by before."""
    fields = Fields("", {})
    for name in PROCESSORS:
        if (folder / name).exists():
            found = Fields(str(folder / name), read_object(folder / name))
            fields = found.section("image_processor") if name == PROCESSORS[1] and found.has(
                "image_processor"
            ) else found  # fmt: skip
            break
    for name in ("do_resize", "do_rescale", "do_normalize"):
        if fields.has(name) and not fields.flag(name):
            raise fields.error(name, "is false, which is not supported")
    if fields.has("do_pan_and_scan") and fields.flag("do_pan_and_scan"):
        raise fields.error("do_pan_and_scan", "is true, which is not supported")
    if fields.integer("resample", 0, 5, BILINEAR) != BILINEAR:
        raise fields.error("resample", f"is not {BILINEAR}, which is all that is supported")
    if fields.has("size"):
        size = fields.section("size")
        for name in ("height", "width"):
            if size.integer(name, 1, MAX_SIDE) != side:
                raise size.error(name, f"is not the tower's image_size, {side}")

    def colours(name: str) -> tuple[float, ...]:
        values = fields.numbers(name, 1e-6, 1.0) if fields.has(name) else [0.5] * 3
        if len(values) != 3:
            raise fields.error(name, "has not three numbers")
        return tuple(values)

    scale = fields.number("rescale_factor", 1e-6, 1.0, 1 / 255)
    return colours("image_mean"), colours("image_std"), scale
