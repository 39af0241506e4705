"""The operators of a step, some of whose tokens have adapters."""

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kvrt.model.decoder.branches import PLAIN
from kvrt.model.decoder.ops import MixedOps
from kvrt.model.lora.adapter import Adapter
from kvrt.spi import Activation, LowRank, LowRankOps, LowRankRows, Matrices

Segment = tuple[int, int, int]
"""First token, the one behind the last, and the number of their adapter."""


def segments_of(query_start: Sequence[int], numbers: Sequence[int]) -> tuple[Segment, ...]:
    """The tokens of a step that have adapters.

    Args:
        query_start: [sequences + 1]; where the tokens of each sequence begin.
        numbers: [sequences]; of their adapters, 0: it has none.
    """
    segments: list[Segment] = []
    at = 0
    for number, same in itertools.groupby(numbers):
        start, at = query_start[at], at + len([*same])
        if number and start < query_start[at]:
            segments.append((start, query_start[at], number))
    return tuple(segments)


class AdaptedOps:
    """The operators of a model, by which the products of some tokens have more added to them.

    What is computed of a token is the same whatever others have: of those without an adapter, what
    it is in a step where nobody has one.

    Args:
        ops: of the model.
        own: the device's, for adapters, if it has them.
        segments: of the step.
        adapters: by their numbers.
    """

    def __init__(
        self,
        ops: MixedOps,
        own: LowRankOps | None,
        segments: Sequence[Segment],
        adapters: Mapping[int, Adapter],
    ) -> None:
        self._ops = ops
        self._own = own
        self._rows = _rows_of(segments, adapters)
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
        rows = self._rows.get(id(weight))
        if rows is not None and self._own is not None:
            return self._own.adapted_linear(x, weight, rows, bias, residual, out)
        result = self._ops.linear(x, weight, bias, residual, out)
        if rows is not None:
            self._add(x, rows, result)
        return result

    def gated_linear(
        self,
        x: Tensor,
        weight: Tensor | Matrices,
        activation: Activation,
        bias: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        rows = self._rows.get(id(weight))
        if rows is None:
            return self._ops.gated_linear(x, weight, activation, bias, out)
        if self._own is not None:
            return self._own.adapted_gated_linear(x, weight, rows, activation, bias, out)
        if out is None:
            out = torch.empty(len(x), _width(weight) // 2, dtype=x.dtype, device=x.device)
        self._gated(x, weight, rows, activation, bias, out)
        return out

    def _add(self, x: Tensor, rows: LowRankRows, result: Tensor) -> None:
        for start, stop, added in rows.segments:
            between, at = self._ops.linear(x[start:stop], added.a), 0
            for first, b in added.parts:
                part = between[:, at : at + len(b)]
                result[start:stop, first : first + b.shape[1]] += part @ b.to(part.dtype)
                at += len(b)

    def _gated(
        self,
        x: Tensor,
        weight: Tensor | Matrices,
        rows: LowRankRows,
        activation: Activation,
        bias: Tensor | None,
        out: Tensor,
    ) -> None:
        """Of tokens with nothing to add, what gated products of the device's own are."""
        plain = 0
        for start, stop, added in (*rows.segments, (len(x), len(x), None)):
            if plain < start:
                own = slice(plain, start)
                self._ops.gated_linear(x[own], weight, activation, bias, out[own])
            plain = stop
            if added is not None:
                both = self._ops.linear(x[start:stop], weight, bias)
                self._add(x[start:stop], LowRankRows(((0, stop - start, added),)), both)
                gate, up = both.chunk(2, dim=-1)
                out[start:stop] = PLAIN[activation](gate.float()) * up


def _width(weight: Tensor | Matrices) -> int:
    return sum(matrix.out for matrix in weight) if isinstance(weight, tuple) else len(weight)


def _rows_of(
    segments: Sequence[Segment], adapters: Mapping[int, Adapter]
) -> dict[int, LowRankRows]:
    """Of each weight that something is added to, by its `id`, to which tokens what."""
    found: dict[int, list[tuple[int, int, LowRank]]] = {}
    for start, stop, number in segments:
        for weight, added in adapters[number].deltas.items():
            found.setdefault(weight, []).append((start, stop, added))
    return {weight: LowRankRows(tuple(rows)) for weight, rows in found.items()}
