"""The towers that are known, by the architectures that have them."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from kvrt.model.files.jsonfile import Fields
from kvrt.model.spec import ModelSpec
from kvrt.model.vision.gemma3 import Gemma3Tower, read_gemma3
from kvrt.model.vision.qwen3 import Qwen3Tower, read_qwen3
from kvrt.model.vision.qwen25 import Qwen25Tower, read_qwen25
from kvrt.model.vision.spec import VisionSpec, read_fields
from kvrt.spi import Device, DType


class Tower(Protocol):
    """A vision tower on a device.

    Args:
        content: a name for its weights.
    """

    content: str

    def states(self, pixels: Tensor) -> Tensor:
        """The states of an image, [rows * columns, (1 + deep) * out], on the device.

        Args:
            pixels: uint8 [3, height, width], on the host.
        """

    def close(self) -> None:
        """Give the weights back. It computes no more."""


class Family(NamedTuple):
    """How a tower is read.

    Args:
        read: its shape, from a model's folder.
        load: itself, to a device.
        nbytes: of its matrices.
    """

    read: Callable[[Path, ModelSpec], VisionSpec]
    load: Callable[[Path, Any, Device, DType], Tower]
    nbytes: Callable[[Any, DType], int]


QWEN35 = Family(partial(read_qwen3, between=()), Qwen3Tower, Qwen3Tower.nbytes)

TOWERS: Mapping[str, Family] = {
    "Gemma3ForConditionalGeneration": Family(read_gemma3, Gemma3Tower, Gemma3Tower.nbytes),
    "Qwen2_5_VLForConditionalGeneration": Family(read_qwen25, Qwen25Tower, Qwen25Tower.nbytes),
    "Qwen3VLForConditionalGeneration": Family(read_qwen3, Qwen3Tower, Qwen3Tower.nbytes),
    "Qwen3_5ForConditionalGeneration": QWEN35,
    "Qwen3_5MoeForConditionalGeneration": QWEN35,
}


def family_of(folder: Path) -> Family | None:
    """What reads the tower of a model's folder; None: it has none that is known."""
    fields: Fields = read_fields(folder)
    names = fields.values().get("architectures")
    if not fields.has("vision_config") or not isinstance(names, list):
        return None
    return next((TOWERS[name] for name in names if name in TOWERS), None)
