"""Experts read from a checkpoint's files, again and again while the model runs.

They are read into memory and not mapped, so that a file that is cut short, or a disk that fails, is
an error and not the end of the process. What was read is compared with what was there when the
model was loaded, and looked through for values that are not finite.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from threading import Lock

import torch
import xxhash
from torch import Tensor

from kvrt.errors import ModelError, WeightsUnreadable
from kvrt.model.checkpoint.checkpoint import Checkpoint
from kvrt.model.checkpoint.filling import put_again, put_matrix, target_in
from kvrt.model.checkpoint.targets import targets_of
from kvrt.model.files.jsonfile import open_regular, shown
from kvrt.model.weights.weights import Packing, Weight
from kvrt.spi import Matrices


class ExpertReader:
    """Reads parts of a model's weights; from several threads at once.

    Args:
        checkpoint: in whose files they are.
        packing: which of them are codes.
        digests: of all tensors, as `kvrt.model.checkpoint.filling.fill` gives them.
    """

    def __init__(
        self, checkpoint: Checkpoint, packing: Packing, digests: Mapping[str, bytes]
    ) -> None:
        self._checkpoint = checkpoint
        self._packing = packing
        self._digests = digests
        self._files: dict[Path, int] = {}
        self._lock = Lock()

    def read(self, weight: Weight, view: Tensor | Matrices) -> int:
        """Read a weight, or a part of one, to its place.

        Returns:
            Bytes that were read.

        Raises:
            WeightsUnreadable: a file is gone, was cut short or changed, or cannot be read.
        """
        checkpoint, nbytes = self._checkpoint, 0

        def read(name: str) -> Tensor:
            nonlocal nbytes
            raw = self._bytes(name)
            nbytes += raw.numel()
            return raw

        for part, place in targets_of(weight, view, self._packing):
            target = target_in(checkpoint, part, place)
            if part.name in checkpoint.matrices:
                put_matrix(checkpoint, part.name, target, read)
            else:
                entry = checkpoint.tensors[part.name][1]
                put_again(entry, [read(part.name)], target, checkpoint.rows.get(part.name))
        return nbytes

    def close(self) -> None:
        """Close the files; the next read opens them again."""
        with self._lock:
            for fd in self._files.values():
                os.close(fd)
            self._files.clear()

    def _bytes(self, name: str) -> Tensor:
        """All bytes of a tensor, as they were when the model was loaded: uint8 [bytes]."""
        path, entry = self._checkpoint.tensors[name]
        raw = torch.empty(entry.end - entry.start, dtype=torch.uint8)
        data = raw.numpy().data
        try:
            fd, at = self._file(path), 0
            while at < len(data):
                count = os.preadv(fd, [data[at:]], entry.start + at)
                if not count:
                    raise _unreadable(path, name, "was cut short")
                at += count
        except OSError as error:
            raise _unreadable(path, name, error.strerror or str(error)) from error
        if xxhash.xxh3_128(data).digest() != self._digests[name]:
            raise _unreadable(path, name, "holds other weights now than when it was loaded")
        return raw

    def _file(self, path: Path) -> int:
        with self._lock:
            if path not in self._files:
                try:
                    self._files[path] = open_regular(path, expected=b"GGUF")
                except ModelError as error:
                    raise WeightsUnreadable(str(error), fix=error.fix) from error
            return self._files[path]


def _unreadable(path: Path, name: str, why: str) -> WeightsUnreadable:
    return WeightsUnreadable(
        f"{path}: tensor {shown(name)}, an expert that a step needed: {why}",
        fix="bring the file back as it was, or close the runtime and make a new one",
    )
