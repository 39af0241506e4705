"""What all vision towers have in common, and how files say it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvrt.model.files.jsonfile import Fields, read_object

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Files that say how images are prepared; in the second it is a section."""

BILINEAR, BICUBIC = 2, 3
"""Ways to resize, as pillow counts them."""

Colours = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSpec(ABC):
    """The shape of a vision tower, and how its images are prepared and stand in prompts.

    Args:
        hidden: width of a patch's state.
        intermediate: width of its feed-forward layer.
        heads: of its attention.
        layers: how many there are.
        patch: pixels of a patch's side.
        norm_eps: added to the variance, or to the mean square, in every norm.
        out: width of the states that it makes for a decoder.
        mean, std: of each colour, of values from 0 to 1.
        scale: what a pixel is multiplied by to be such a value.
        resample: `BILINEAR` or `BICUBIC`.
        image: the token that stands at the places of an image's states.
        mark: the token that stands for an image in a text.
        replaces: what becomes of it: tokens and texts; `image` as often as there are states.
        alone: the tokens that stand for an image in a text that has no mark.
        together: an image's tokens see each other.
        channels: of each pair that is rotated, by which position it is: 0 as in a text, 1 by row, 2
            by column. Empty: all by those of the text.
        deep: so many of the decoder's first layers get something added to what they give, for each
            state; it stands behind that.
    """

    hidden: int
    intermediate: int
    heads: int
    layers: int
    patch: int
    norm_eps: float
    out: int
    mean: Colours
    std: Colours
    scale: float
    resample: int
    image: int
    mark: int
    replaces: tuple[int | str, ...]
    alone: tuple[int, ...]
    together: bool
    channels: tuple[int, ...] = ()
    deep: int = 0

    @abstractmethod
    def resized(self, width: int, height: int) -> tuple[int, int]:
        """The width and height that an image of these is given.

        Raises:
            ValueError: it cannot be seen in such a shape.
        """

    @abstractmethod
    def grid(self, width: int, height: int) -> tuple[int, int]:
        """The rows and columns of states that a resized image becomes."""


def read_fields(folder: Path) -> Fields:
    """Those of config.json."""
    return Fields(str(folder / "config.json"), read_object(folder / "config.json"))


def read_processor(folder: Path, resample: int) -> Fields:
    """What the file of the image processor says; nothing, where there is none.

    Args:
        resample: the one way to resize that is supported.

    Raises:
        ModelError: it says what is not supported.
    """
    fields = Fields("", {})
    for name in PROCESSORS:
        if (folder / name).exists():
            fields = Fields(str(folder / name), read_object(folder / name))
            if fields.holds_object("image_processor"):
                fields = fields.section("image_processor")
            break
    for name, wanted in (
        ("do_resize", True),
        ("do_rescale", True),
        ("do_normalize", True),
        ("do_pan_and_scan", False),
    ):
        if fields.has(name) and fields.flag(name) != wanted:
            raise fields.error(name, f"is {str(not wanted).lower()}, which is not supported")
    if fields.integer("resample", 0, 5, resample) != resample:
        raise fields.error("resample", f"is not {resample}, which is all that is supported")
    return fields


def read_colours(fields: Fields, name: str, usual: Sequence[float]) -> Colours:
    """A number for each colour.

    Raises:
        ModelError: it is not three numbers.
    """
    values = fields.numbers(name, 1e-6, 1.0) if fields.has(name) else usual
    if len(values) != 3:
        raise fields.error(name, "has not three numbers")
    return tuple(values)


def read_scale(fields: Fields) -> float:
    """What pixels are multiplied by."""
    return fields.number("rescale_factor", 1e-6, 1.0, 1 / 255)
