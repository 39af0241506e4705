"""From an image as people have it to the pixels that a tower reads.

What comes is not trusted: its size is read before it is decoded, and whatever a decoder makes of a
damaged file is the fault of the request that brought it.
"""

import hashlib
import io
import struct
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvrt.errors import RequestError
from kvrt.model.vision.spec import VisionSpec

if TYPE_CHECKING:
    from PIL import Image as Pillow

    Image = bytes | bytearray | memoryview | Path | Pillow.Image
    """An image file's bytes, its path, or one of pillow's. Text is no path: what came as JSON, from
    whoever it is, makes nobody read a file."""

MAX_BYTES = 20 << 20
"""Of an image file."""
MAX_PIXELS = 1 << 25
"""Of an image: 33 million, of 3 bytes each as it is decoded."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

INSTALL = "pip install 'kvrt[images]'"
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError,
          OverflowError, MemoryError, struct.error, zlib.error, Warning)  # fmt: skip
"""What decoders raise for files that are not what they say; warnings, where these are errors."""


class Picture(NamedTuple):
    """An image as a tower reads it.

    Args:
        pixels: uint8 [3, height, width], on the host.
        grid: rows and columns of the states that it becomes.
        digest: SHA-256 over them and what sees them: all that comes of the image follows from it.
    """

    pixels: Tensor
    grid: tuple[int, int]
    digest: bytes

    @property
    def tokens(self) -> int:
        """That stand for it: one for each state."""
        return self.grid[0] * self.grid[1]


def installed() -> bool:
    """Whether there is what decodes images."""
    return find_spec("PIL") is not None


def read_picture(image: "Image", spec: VisionSpec, seed: bytes, place: int) -> Picture:
    """An image, resized as transformers' image processor does it.

    Args:
        spec: of the tower.
        seed: says what sees it.
        place: its number in the prompt, from 0 on, for errors.

    Raises:
        RequestError: it is too large, damaged, of another format, or nothing that can be an image.
    """
    from PIL import Image as Pillow
    from PIL import ImageOps

    try:
        opened = image if isinstance(image, Pillow.Image) else _opened(image, place)
        width, height = opened.size
        if width * height > MAX_PIXELS:
            raise _wrong(
                place,
                f"has {width} x {height} pixels; at most {MAX_PIXELS:,} are taken",
                fix="make it smaller",
            )
        plain = ImageOps.exif_transpose(opened).convert("RGB")
        size = _size(spec, plain.size, place)
        resized = plain.resize(size, Pillow.Resampling(spec.resample))
    except DAMAGE as error:
        raise _wrong(place, f"cannot be decoded ({type(error).__name__})") from None
    pixels = np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))
    return Picture(torch.from_numpy(pixels), spec.grid(*size), _digest(seed, pixels))


def _size(spec: VisionSpec, size: tuple[int, int], place: int) -> tuple[int, int]:
    try:
        return spec.resized(*size)
    except ValueError as error:
        raise _wrong(place, str(error), fix="make it less narrow") from None


def _digest(seed: bytes, pixels: NDArray[np.uint8]) -> bytes:
    head = hashlib.sha256(seed).digest() + struct.pack("<3q", *pixels.shape)
    return hashlib.sha256(head + pixels.tobytes()).digest()


def _opened(image: "Image", place: int) -> "Pillow.Image":
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    if isinstance(image, Path):
        try:
            with open(image, "rb") as file:
                data = file.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "is no path"
            raise _wrong(place, f"cannot be read: {why}") from None
    elif isinstance(image, bytes | bytearray | memoryview):
        data = bytes(image)
    else:
        raise _wrong(
            place,
            f"is a {type(image).__name__}",
            fix="give the bytes of an image file, a pathlib.Path, or an image of pillow",
        )
    if len(data) > MAX_BYTES:
        raise _wrong(place, f"has more than {MAX_BYTES:,} bytes", fix="make it smaller")
    try:
        return Pillow.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise _wrong(place, f"is none of {', '.join(FORMATS)}, or damaged") from None
    except Pillow.DecompressionBombError:
        raise _wrong(place, f"has more than {MAX_PIXELS:,} pixels", fix="make it smaller") from None


def _wrong(place: int, why: str, fix: str = "") -> RequestError:
    return RequestError(f"image {place} {why}", param="images", fix=fix)
