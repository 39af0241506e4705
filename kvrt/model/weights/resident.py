"""A model's weights in memory, which may leave it, and come back to where they were."""

import hashlib
import os
from pathlib import Path

from torch import Tensor

from kvrt.errors import ConfigError, ModelError
from kvrt.model.checkpoint.checkpoint import Checkpoint
from kvrt.model.checkpoint.filling import digests_of, fill, fingerprint, refill
from kvrt.model.checkpoint.slicing import Extent, bytes_read, exchange
from kvrt.model.offload.pool import ExpertPool
from kvrt.model.offload.reading import ExpertReader
from kvrt.model.packed.choice import notes_on
from kvrt.model.packed.kept import KeptWeights
from kvrt.model.packed.quantize import Quantize
from kvrt.model.progress import Progress
from kvrt.model.shard import WHOLE, Split
from kvrt.model.spec import ModelSpec
from kvrt.model.weights import arena
from kvrt.model.weights.dummy import fill_dummy
from kvrt.model.weights.weights import Packing
from kvrt.spi import DType
from kvrt.units import format_bytes


class Resident:
    """Fills an arena, gives its memory back, and fills it again with the same bytes.

    Args:
        memory: of all weights, uint8, on any device.
        spec: of the model.
        dtype: of its matrices.
        packing: which of them are codes.
        checkpoint: what they are read from; None: they are random.
        seed: of random ones.
        quantize: they are made into codes of so many bits.
        kept: where quantised ones are kept.
        pool: experts that are brought as needed. Its memory is a part of `memory`.
        split: other ranks have the rest of the model. Then `checkpoint` is what this one reads.
    """

    def __init__(
        self,
        memory: Tensor,
        spec: ModelSpec,
        dtype: DType,
        packing: Packing,
        checkpoint: Checkpoint | None,
        *,
        seed: int = 0,
        quantize: Quantize | None = None,
        kept: KeptWeights | None = None,
        pool: ExpertPool | None = None,
        split: Split | None = None,
    ) -> None:
        self.memory = memory
        self._pool = pool
        self._split = split
        self._spec, self._dtype, self._packing = spec, dtype, packing
        self._checkpoint = checkpoint
        self._seed = seed
        self._quantize = quantize
        self._kept = kept
        self._content = ""
        self.reads: list[list[Extent]] = []
        """Of each rank, where there are several, which bytes of which files it has read."""
        self._marks: dict[Path, tuple[int, ...]] = {}

    def read(self, progress: Progress | None = None) -> tuple[str, list[str]]:
        """Fill it.

        Returns:
            A name for what it was filled with, and what a user may want to know of that.

        Raises:
            ModelError: as `fill`.
        """
        checkpoint = self._checkpoint
        if checkpoint is None:
            shard = WHOLE if self._split is None else self._split.shard
            fill_dummy(self._spec, self._dtype, self.memory, self._seed, self._packing, shard)
            return f"dummy {self._seed}", []
        self._marks = _marks(checkpoint)
        if self._split is not None:
            return self._read_with(self._split, checkpoint)
        if self._quantize is None:
            self._content = self._fill(checkpoint)
            return self._content, [*notes_on(checkpoint, self._packing.formats)]
        self._content, note = self._quantised(checkpoint, self._kept, progress)
        return self._content, [f"{self._quantize} weights {note}"]

    def _fill(self, checkpoint: Checkpoint, progress: Progress | None = None) -> str:
        spec, dtype, packing, pool = self._spec, self._dtype, self._packing, self._pool
        apart = () if pool is None else pool.scratch()
        digests = fill(checkpoint, spec, dtype, self.memory, packing, progress, apart)
        if pool is not None:
            pool.read_from(ExpertReader(checkpoint, packing, digests))
        return fingerprint(checkpoint, digests)

    def _read_with(self, split: Split, checkpoint: Checkpoint) -> tuple[str, list[str]]:
        """The same of all ranks, each of which reads what no other does."""
        own = {"content": self._fill(checkpoint), "read": bytes_read(checkpoint)}
        every = split.meet(own)
        exchange(split, self._spec, self._dtype, self.memory, self._packing)
        self.reads = [[Extent(*read) for read in one["read"]] for one in every]
        content = hashlib.sha256(repr([one["content"] for one in every]).encode())
        counts = [sum(read.nbytes for read in own) for own in self.reads]
        shown = ", ".join(map(format_bytes, counts))
        return content.hexdigest(), [f"of the weights the ranks have read {shown}"]

    def _quantised(
        self, checkpoint: Checkpoint, kept: KeptWeights | None, progress: Progress | None
    ) -> tuple[str, str]:
        """Returns the fingerprint of what they are made of, and how they came about."""
        if kept is not None and kept.any():
            content = fingerprint(checkpoint, digests_of(checkpoint))
            if kept.read(content, self.memory):
                return content, f"were read from {kept.path(content)}"
        content = self._fill(checkpoint, progress)
        if kept is not None and kept.write(content, self.memory):
            return content, f"are kept in {kept.path(content)}"
        return content, "were made for this start"

    def close(self) -> None:
        """Let go of the memory: nothing fills it again."""
        self.memory = self.memory.new_empty(0)

    # --- going, and coming back --------------------------------------------------------------

    def check(self) -> None:
        """That it can go.

        Raises:
            ConfigError: the device's memory cannot go and keep its addresses, or other ranks have
                the rest of the model.
        """
        if self._split is not None:
            raise ConfigError(
                "weights that several ranks have cannot leave them",
                fix="sleep with level 1, which gives the memory of keys and values back",
            )
        if self.memory.device.type != "cpu":
            raise ConfigError(
                f"weights on {self.memory.device.type} cannot leave it",
                fix="sleep with level 1, which gives the memory of keys and values back",
            )

    def drop(self) -> None:
        """Give the memory back to the system. Its addresses stay, and must not be read."""
        if self._pool is not None:
            self._pool.clear()
        arena.give_back(self.memory)

    def bring_back(self) -> None:
        """Fill it with what was there. Files that have not changed since are not checked again.

        Raises:
            ModelError: what it was read from has gone, or is another model now.
        """
        checkpoint = self._checkpoint
        if checkpoint is None:
            self.read()
        elif _marks(checkpoint) == self._marks:
            kept = self._kept
            if kept is None or not kept.read(self._content, self.memory):
                spec, dtype, packing = self._spec, self._dtype, self._packing
                refill(checkpoint, spec, dtype, self.memory, packing)
        elif self._fill(checkpoint) != self._content:
            path, _ = next(iter(checkpoint.tensors.values()))
            raise ModelError(
                f"{path}: holds other weights now than when it was loaded",
                fix="close the runtime, and make a new one",
            )


def _marks(checkpoint: Checkpoint) -> dict[Path, tuple[int, ...]]:
    """What tells whether somebody has written to the files."""
    marks: dict[Path, tuple[int, ...]] = {}
    for path, _ in checkpoint.tensors.values():
        if path not in marks:
            try:
                found = os.stat(path)
            except OSError as error:
                raise ModelError(f"{path}: {error.strerror}") from None
            marks[path] = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    return marks
