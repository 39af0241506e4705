"""A loaded model's eyes: its tower, what was seen last, and how prompts are to have images."""

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from kvrt.errors import ModelError
from kvrt.model.spec import ModelSpec
from kvrt.model.vision.families import Tower, family_of
from kvrt.model.vision.pixels import INSTALL, Picture, installed, read_picture
from kvrt.model.vision.spec import VisionSpec
from kvrt.spi import Device, DType

if TYPE_CHECKING:
    from kvrt.model.vision.pixels import Image

KEPT_BYTES = 64 << 20
"""States of images that were seen last, for when a request that had to stop goes on."""


UNKNOWN = "has no vision tower that kvrt knows"


class Vision:
    """A vision tower, and what it has seen.

    Args:
        spec: its shape.
        tower: makes the states.
        most: images of a prompt.
    """

    def __init__(self, spec: VisionSpec, tower: Tower, most: int) -> None:
        self.spec = spec
        self.most = most
        self._seed = f"{spec} {tower.content}".encode()
        self._tower = tower
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._kept_bytes = 0

    def read(self, image: "Image", place: int) -> Picture:
        """An image as the tower reads it; see `read_picture`. Any thread may ask."""
        return read_picture(image, self.spec, self._seed, place)

    def states(self, picture: Picture) -> Tensor:
        """The states of an image, [rows * columns, out], on the device. One thread may ask."""
        if (found := self._kept.get(picture.digest)) is not None:
            self._kept.move_to_end(picture.digest)
            return found
        states = self._kept[picture.digest] = self._tower.states(picture.pixels)
        self._kept_bytes += states.nbytes
        while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return states

    def close(self) -> None:
        """Give the weights back. It sees no more."""
        self._kept.clear()
        self._tower.close()


def find_vision(folder: Path, decoder: ModelSpec, most: int) -> VisionSpec | str:
    """The tower of the model at a path, or why it is not loaded.

    Args:
        most: images of a prompt; 0: it is not wanted.
    """
    family = family_of(folder) if folder.is_dir() else None
    if family is None:
        return UNKNOWN
    if most == 0:
        return "was loaded without its vision tower: max_images is 0"
    if not installed():
        return f"needs pillow to read images: {INSTALL}"
    try:
        return family.read(folder, decoder)
    except ModelError as error:
        return f"has a vision tower that is not supported: {error}"


def tower_bytes(folder: Path, spec: VisionSpec | str, dtype: DType) -> int:
    """Memory that what `find_vision` has found takes."""
    family = None if isinstance(spec, str) else family_of(folder)
    return 0 if family is None else family.nbytes(spec, dtype)


def load_vision(
    folder: Path, spec: VisionSpec | str, device: Device, dtype: DType, most: int
) -> Vision | str:
    """The tower that `find_vision` has found, on a device.

    Args:
        dtype: of the decoder's matrices; the tower's have it, too.
        most: images of a prompt.

    Raises:
        ModelError: its weights are damaged.
        CapacityError: it does not fit in the device's free memory.
    """
    if isinstance(spec, str):
        return spec
    family = family_of(folder)
    assert family is not None, "it has been found"
    return Vision(spec, family.load(folder, spec, device, dtype), most)
