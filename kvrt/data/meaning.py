"""Rows whose texts mean nearly the same: their vectors, of some embedding model, are near.

Each is compared with each that has stayed, a block of them at a time; vectors are in a file of
their own. That is n² / 2 products of vectors: a minute for 100,000 rows of 384 dimensions.
"""

import tempfile
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kvrt.data.duplicates import Duplicate
from kvrt.data.rows import Part, Row

if TYPE_CHECKING:
    from kvrt.embedding.embedder import Embedder

Vector = NDArray[np.float32]

BLOCK = 16_384
"""Vectors that are compared at once."""

SLACK = 1e-4
"""More than a product of float32 in a block can be beside the one in float64 that counts: that one
does not depend on what else is compared."""


class Meaning:
    """See the module.

    Args:
        embedder: makes the vectors; texts that are too long for it are cut.
        near: the cosine of two vectors, at least.
    """

    def __init__(self, embedder: "Embedder", part: Part, near: float) -> None:
        self._embedder = embedder
        self._part = part
        self._near = near
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        self._lines: list[int] = []
        self._last: Vector | None = None

    def close(self) -> None:
        self._file.close()

    def find(self, row: Row) -> Duplicate | None:
        text = row.text(self._part)
        self._last = None
        if not text.strip():
            return None
        vector = self._embedder.embed([text], truncate=True).vectors[0]
        length = float(np.linalg.norm(vector))
        if not length:
            return None
        self._last = vector = vector / np.float32(length)
        for begin in range(0, len(self._lines), BLOCK):
            block = self._block(begin)
            for at in np.flatnonzero(block @ vector >= self._near - SLACK):
                cosine = float(block[at].astype(np.float64) @ vector.astype(np.float64))
                if cosine >= self._near:
                    line = self._lines[begin + int(at)]
                    return Duplicate(row.number, line, "meaning", min(1.0, cosine))
        return None

    def keep(self, row: Row) -> None:
        if self._last is not None:
            self._file.seek(0, 2)
            self._file.write(self._last.astype(np.float32).tobytes())
            self._lines.append(row.number)

    def _block(self, begin: int) -> Vector:
        width = self._embedder.dimensions
        self._file.seek(4 * width * begin)
        data = self._file.read(4 * width * BLOCK)
        return np.frombuffer(data, np.float32).reshape(-1, width)
