"""Random weights, for models of which there is only the shape."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from kvrt.model.checkpoint.targets import Target, targets_of
from kvrt.model.shard import WHOLE, Shard
from kvrt.model.spec import ModelSpec
from kvrt.model.weights.arena import allocate
from kvrt.model.weights.slices import Cut, sliced
from kvrt.model.weights.weights import NOTHING_PACKED, Packing, Weight, place, weights_of
from kvrt.spi import DType, Matrices

SCALE = 0.02
BLOCK = 1 << 22
"""Numbers that a thread draws at once, about."""

MOST_BLOCKS = 32
"""Of 16 MiB, drawn before they are stored: twice as many as there are processors, up to so many."""


class Wanted(NamedTuple):
    """What a target takes.

    Args:
        rows: which.
        columns: which of theirs; None: all.
    """

    rows: range
    columns: range | None
    target: Target


class Rows:
    """Some rows of what comes, each to its target.

    Args:
        width: numbers of a row.
        wanted: of each target the rows that it takes, in their order; none are wanted twice.
    """

    def __init__(self, width: int, wanted: list[Wanted]) -> None:
        self._width = width
        self._wanted = wanted
        self._at = 0

    def put(self, source: Tensor) -> None:
        """The numbers that come next: whole rows."""
        start, stop = self._at, self._at + len(source) // self._width
        came = source.view(-1, self._width)
        for rows, columns, target in self._wanted:
            first, last = max(start, rows.start), min(stop, rows.stop)
            if first < last:
                own = came[first - start : last - start]
                if columns is not None:
                    own = own[:, columns.start : columns.stop]
                target.put(own.reshape(-1))
        self._at = stop

    def finish(self) -> None:
        """All have come."""
        for wanted in self._wanted:
            wanted.target.finish()


Block = tuple[Rows, int, int, bool]
"""A piece of a matrix: where it goes, its rows and columns, and whether it is the last."""


def fill_dummy(
    spec: ModelSpec,
    dtype: DType,
    memory: Tensor,
    seed: int,
    packing: Packing = NOTHING_PACKED,
    shard: Shard = WHOLE,
) -> None:
    """Random weights: matrices and filters from normal distributions, norms 1, biases 0.

    Made on the host, so that a seed gives the same weights on every device; by all processors, as
    one takes 5 ns for each number. A rank that has a part of them makes all, and keeps its own.

    Args:
        spec: of the whole model.
        shard: what is to be kept.
    """
    filters = torch.Generator().manual_seed(seed)
    placed = list(place(spec, dtype, memory, packing))
    for weight, view in placed:
        if isinstance(view, Tensor) and not weight.is_matrix:
            if weight.field == "conv":  # so that what is before a token counts
                view.copy_(torch.randn(view.shape, generator=filters))
            else:
                view.fill_(1.0 if weight.is_one else 0.0)
    blocks = [*_blocks_of(spec, shard, packing, placed)]
    generator = torch.Generator().manual_seed(seed)
    seeds = torch.randint(2**31, (len(blocks),), generator=generator).tolist()
    processors = os.cpu_count() or 1
    at_once = min(2 * processors, MOST_BLOCKS)
    # Not of the C library, which would keep what several threads took of it and gave back.
    largest = max((rows * width for _, rows, width, _ in blocks), default=0)
    places = allocate(4 * at_once * largest, "cpu").view(torch.float32).view(at_once, largest)
    with ThreadPoolExecutor(processors) as pool:
        for some in range(0, len(blocks), at_once):
            targets, rows, widths, last = zip(*blocks[some : some + at_once], strict=True)
            drawn = pool.map(_draw, places, rows, widths, seeds[some : some + at_once])
            for target, numbers, ends in zip(targets, drawn, last, strict=True):
                target.put(numbers)
                if ends:
                    target.finish()


def _blocks_of(
    spec: ModelSpec,
    shard: Shard,
    packing: Packing,
    placed: list[tuple[Weight, Tensor | Matrices]],
) -> Iterator[Block]:
    """Pieces of the whole model's matrices, of which a rank keeps its rows: so they are the same on
    all ranks."""
    targets: dict[str, Target] = {
        part.name: target
        for weight, view in placed
        for part, target in targets_of(weight, view, packing)
    }
    cuts: dict[str, list[Cut]] = {}
    whole = replace(packing, slices=None)
    for _, own in sliced(spec, shard, whole):
        for cut in own:
            cuts.setdefault(cut.whole.name, []).append(cut)
    for weight in weights_of(spec):
        if not weight.is_matrix:
            continue
        at, wanted, width = 0, list[Wanted](), weight.shape[1]
        apart = bool(whole.formats_of(weight))
        for part in weight.parts:
            wanted += [
                Wanted(
                    range(at + cut.rows.start, at + cut.rows.stop), cut.columns, targets[cut.name]
                )
                for cut in cuts.get(part.name, ())
            ]
            at += part.shape[0]
            if apart or part is weight.parts[-1]:
                yield from _blocks(Rows(width, wanted), at, width)
                at, wanted = 0, []


def _blocks(target: Rows, rows: int, width: int) -> Iterator[Block]:
    step = max(1, BLOCK // width)
    for row in range(0, rows, step):
        yield target, min(step, rows - row), width, row + step >= rows


def _draw(place: Tensor, rows: int, width: int, seed: int) -> Tensor:
    """float32 from a normal distribution, [rows * width], at the beginning of a place. Uses no
    OpenMP, whose teams of threads would stay."""
    generator = torch.Generator().manual_seed(seed)
    return place[: rows * width].normal_(0.0, SCALE, generator=generator)
