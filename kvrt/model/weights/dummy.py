"""Random weights, for models of which there is only the shape."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from kvrt.model.checkpoint.targets import Floats, Target, targets_of
from kvrt.model.spec import ModelSpec
from kvrt.model.weights.arena import allocate
from kvrt.model.weights.weights import NOTHING_PACKED, Packing, place
from kvrt.spi import DType

SCALE = 0.02
BLOCK = 1 << 22
"""Numbers that a thread draws at once, about."""

MOST_BLOCKS = 32
"""Of 16 MiB, drawn before they are stored: twice as many as there are processors, up to so many."""


def fill_dummy(
    spec: ModelSpec, dtype: DType, memory: Tensor, seed: int, packing: Packing = NOTHING_PACKED
) -> None:
    """Random weights: matrices and filters from normal distributions, norms 1, biases 0.

    Made on the host, so that a seed gives the same weights on every device; by all processors, as
    one takes 5 ns for each number.
    """
    blocks: list[tuple[Target, int, int, bool]] = []
    filters = torch.Generator().manual_seed(seed)
    for weight, view in place(spec, dtype, memory, packing):
        if not isinstance(view, Tensor):
            for part, target in targets_of(weight, view, packing):
                blocks += _blocks(target, *part.shape)
        elif weight.is_matrix:
            blocks += _blocks(Floats(view), *view.shape)
        elif weight.field == "conv":  # so that what is before a token counts
            view.copy_(torch.randn(view.shape, generator=filters))
        else:
            view.fill_(1.0 if weight.is_one else 0.0)
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


def _blocks(target: Target, rows: int, width: int) -> Iterator[tuple[Target, int, int, bool]]:
    """Pieces of a matrix: where they go, their rows and columns, and whether it is the last."""
    step = max(1, BLOCK // width)
    for row in range(0, rows, step):
        yield target, min(step, rows - row), width, row + step >= rows


def _draw(place: Tensor, rows: int, width: int, seed: int) -> Tensor:
    """float32 from a normal distribution, [rows * width], at the beginning of a place. Uses no
    OpenMP, whose teams of threads would stay."""
    generator = torch.Generator().manual_seed(seed)
    return place[: rows * width].normal_(0.0, SCALE, generator=generator)
