"""The operators of a step, some of whose tokens have adapters."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kvrt.model.branches import PLAIN
from kvrt.model.lora.adapter import Adapter
from kvrt.model.lora.peft import Delta
from kvrt.model.ops import MixedOps
from kvrt.spi import Activation, Matrices


class Segment(NamedTuple):
    """Tokens from `start` to before `stop`, which have one adapter, or none."""

    start: int
    stop: int
    adapter: Adapter | None


def segments_of(
    query_start: Sequence[int], numbers: Sequence[int], adapters: Mapping[int, Adapter]
) -> list[Segment]:
    """The segments of a step.

    Args:
        query_start: [sequences + 1]; where the tokens of each sequence begin.
        numbers: [sequences]; of their adapters, 0: it has none.
        adapters: by their numbers.
    """
    segments: list[Segment] = []
    at = 0
    for number, same in itertools.groupby(numbers):
        start, at = query_start[at], at + len([*same])
        segments.append(Segment(start, query_start[at], adapters[number] if number else None))
    return segments


class AdaptedOps:
    """The operators of a model, by which the products of some tokens have more added to them.

    What is computed of a token is the same whatever others have: of those without an adapter, what
    it is in a step where nobody has one.

    Args:
        ops: of the model.
        segments: of all tokens of the step, in their order.
    """

    def __init__(self, ops: MixedOps, segments: Sequence[Segment]) -> None:
        self._ops = ops
        self._segments = segments
        self.rms_norm = ops.rms_norm
        self.rotate_append = ops.rotate_append

    def linear(
        self,
        x: Tensor,
        weight: Tensor | Matrices,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        result = self._ops.linear(x, weight, bias, residual, out)
        self._add(x, weight, result, 0)
        return result

    def gated_linear(
        self,
        x: Tensor,
        weight: Tensor | Matrices,
        activation: Activation,
        bias: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        if out is None:
            width = (len(x), self._rows(weight) // 2)
            out = torch.empty(width, dtype=x.dtype, device=x.device)
        for adapted, (start, stop) in self._runs(weight):
            part = x[start:stop]
            if not adapted:
                self._ops.gated_linear(part, weight, activation, bias, out[start:stop])
                continue
            both = self._ops.linear(part, weight, bias)
            self._add(part, weight, both, start)
            gate, up = both.chunk(2, dim=-1)
            out[start:stop] = PLAIN[activation](gate.float()) * up
        return out

    def _rows(self, weight: Tensor | Matrices) -> int:
        if isinstance(weight, tuple):
            return sum(matrix.out for matrix in weight)
        return len(weight)

    def _of(self, segment: Segment, weight: Tensor | Matrices) -> Delta | None:
        return None if segment.adapter is None else segment.adapter.deltas.get(id(weight))

    def _runs(self, weight: Tensor | Matrices) -> Iterator[tuple[bool, tuple[int, int]]]:
        """Tokens that follow each other, all with something to add to a weight's products, or
        none."""
        runs = itertools.groupby(self._segments, lambda each: self._of(each, weight) is not None)
        for adapted, segments in runs:
            listed = [*segments]
            yield adapted, (listed[0].start, listed[-1].stop)

    def _add(self, x: Tensor, weight: Tensor | Matrices, result: Tensor, first: int) -> None:
        """Add to the products of a weight with `x`, whose rows are tokens from `first` on."""
        for segment in self._segments:
            start, stop = segment.start - first, segment.stop - first
            if not 0 <= start < len(x) or (delta := self._of(segment, weight)) is None:
                continue
            own = result[start:stop]
            low = self._ops.linear(x[start:stop], delta.a)
            self._ops.linear(low, delta.b, None, own, own)
