"""The bytes of a checkpoint that one rank reads, and what it has from others.

Each byte is read by one rank: what several need is read by the first of them, and sent.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from kvrt.errors import ConfigError
from kvrt.model.checkpoint.checkpoint import Checkpoint
from kvrt.model.checkpoint.header import TensorEntry, Tensors
from kvrt.model.checkpoint.rows import Rows
from kvrt.model.gguf.types import BY_NAME
from kvrt.model.shard import Shard, Split
from kvrt.model.spec import ModelSpec
from kvrt.model.weights.slices import Cut, ranks_with, sliced, uneven
from kvrt.model.weights.weights import Packing, Weight, place
from kvrt.spi import DType, Matrices

EVEN = "pairs", "less_one"
"""Orders of rows (`kvrt.model.weights.naming.RowOrder`) that are the same in every rank's part."""


def own_slices(
    checkpoint: Checkpoint, spec: ModelSpec, shard: Shard, packing: Packing
) -> Checkpoint:
    """What a rank reads.

    Args:
        packing: of the whole model.

    Raises:
        ConfigError: the files do not have rows one after the other.
    """
    if checkpoint.matrices:
        raise _scattered("matrices that are several tensors each, as GPTQ and AWQ have them,")
    readers = ranks_with(spec, shard)
    tensors: Tensors = {}
    rows: dict[str, Rows] = {}
    for _, cuts in sliced(spec, shard, packing):
        for cut in cuts:
            path, entry = checkpoint.tensors[cut.whole.name]
            order = checkpoint.rows.get(cut.whole.name)
            if cut.name != cut.whole.name:
                _check(cut, order)
                entry = _entry(entry, cut)
            if readers[cut.name][0] != shard.rank:
                continue
            tensors[cut.name] = path, entry
            if order is not None:
                heads = order.heads * len(cut.rows) // cut.whole.shape[0]
                rows[cut.name] = order._replace(heads=heads)
    return replace(checkpoint, tensors=tensors, rows=rows)


def _entry(entry: TensorEntry, cut: Cut) -> TensorEntry:
    """Some rows of a tensor, or some columns of all of them."""
    row = entry.row_bytes
    if cut.columns is not None:
        kind = BY_NAME[entry.dtype]
        ends = cut.columns.start, cut.columns.stop
        if any(end % kind.numbers for end in ends):
            raise uneven(cut, kind.name)
        start, stop = (end // kind.numbers * kind.nbytes for end in ends)
        return replace(
            entry,
            shape=(entry.shape[0], len(cut.columns)),
            start=entry.start + start,
            end=entry.end - row + stop,
            pitch=row,
        )
    start, stop = (entry.start + row * at for at in (cut.rows.start, cut.rows.stop))
    return replace(entry, shape=(len(cut.rows), *entry.shape[1:]), start=start, end=stop)


def _check(cut: Cut, order: Rows | None) -> None:
    if cut.whole.columns or (order is not None and order.order not in EVEN):
        raise _scattered(f"the rows of {cut.whole.name} in another order, which")


def _scattered(what: str) -> ConfigError:
    return ConfigError(
        f"these files have {what} cannot be cut into parts yet",
        fix="run it on one rank, or convert it to a checkpoint of floats or to GGUF",
    )


class Extent(NamedTuple):
    """Bytes of a file.

    Args:
        file: its name.
        start: the first of them.
        length: so many, one after the other.
        times: so often.
        pitch: from the first of one time to the first of the next.
    """

    file: str
    start: int
    length: int
    times: int = 1
    pitch: int = 0

    @property
    def nbytes(self) -> int:
        return self.length * self.times


def bytes_read(checkpoint: Checkpoint) -> list[Extent]:
    """Which bytes of which files."""
    return [
        Extent(path.name, entry.start, entry.row_bytes, entry.shape[0], entry.pitch)
        if entry.pitch
        else Extent(path.name, entry.start, entry.nbytes)
        for path, entry in checkpoint.tensors.values()
    ]


def exchange(split: Split, spec: ModelSpec, dtype: DType, memory: Tensor, packing: Packing) -> None:
    """Send the rows that others need as well, and have those that others have read.

    Args:
        spec: of the whole model.
        memory: of the rank's weights.
        packing: of the rank's weights.

    Raises:
        DeviceError: another rank has gone.
    """
    rank, world = split.shard.rank, split.world
    places = dict(_places(place(spec, dtype, memory, packing)))
    for name, ranks in sorted(ranks_with(spec, split.shard).items()):
        if rank not in ranks or len(ranks) == 1:
            continue
        first, *others = ranks
        if rank != first:
            world.receive(places[name], first)
            continue
        for other in others:
            world.send(places[name], other)


def _places(placed: Iterable[tuple[Weight, Tensor | Matrices]]) -> Iterator[tuple[str, Tensor]]:
    """Where each part is: uint8."""
    for weight, view in placed:
        if isinstance(view, Tensor):
            own = torch.split(view, [part.shape[0] for part in weight.parts])
        else:
            own = tuple(matrix.data for matrix in view)
        for part, piece in zip(weight.parts, own, strict=True):
            yield part.name, piece.view(-1).view(torch.uint8)
