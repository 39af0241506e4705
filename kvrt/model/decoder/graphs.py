"""Steps of few tokens, recorded once for each size and replayed."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F

from kvrt.model.decoder.activations import Activations
from kvrt.spi import AttentionBatch, Graph, GraphCapture


class Recorded(NamedTuple):
    """A recorded step, and the activations that it computes in."""

    graph: Graph
    work: Activations


class DecodeGraphs:
    """The recorded steps of a decoder.

    They share their activations, so that many sizes take the memory of the largest.

    Args:
        capture: the device's.
        ragged: a recorded step serves any batch; else only one token for each sequence.
    """

    def __init__(self, capture: GraphCapture, ragged: bool) -> None:
        self._ragged = ragged
        self._capture = capture
        self._work: Activations | None = None
        self._recorded: dict[int, Recorded] = {}
        self._adapted: tuple[tuple[int, Hashable], Recorded] | None = None

    def size(self, tokens: int, batch: AttentionBatch) -> int:
        """How many tokens the step of `tokens` is recorded with; 0 if it is not to be."""
        fits = self._ragged or tokens == batch.context_len.shape[0]
        return self._capture.size(tokens) if fits else 0

    def of_size(
        self,
        size: int,
        batches: Sequence[AttentionBatch],
        allocate: Callable[[int], Activations],
        record: Callable[[Sequence[object], Activations], None],
        adapted: Hashable = (),
    ) -> tuple[Graph, Activations]:
        """The step of `size` tokens, recorded now, with `batches`, if it has not been before.

        Args:
            allocate: makes activations of so many tokens.
            record: makes the calls of a step, for the device's plans and in these activations.
            adapted: which of the tokens have which adapters. Of such steps only the last one is
                kept: most often the next one has the same.
        """
        found = None if adapted else self._recorded.get(size)
        if adapted and self._adapted is not None and self._adapted[0] == (size, adapted):
            found = self._adapted[1]
        if found is None:
            if self._work is None or self._work.tokens < size:
                self._recorded.clear()  # they compute in the old one
                self._adapted = None
                self._work = allocate(1 << (size - 1).bit_length())
            work = self._work.first(size)
            graph = self._capture.capture(batches, lambda plans: record(plans, work))
            found = Recorded(graph, work)
            if adapted:
                self._adapted = (size, adapted), found
            else:
                self._recorded[size] = found
        return found.graph, found.work


def padded(batch: AttentionBatch, size: int) -> AttentionBatch:
    """The batch with further sequences, of one token each, up to `size` tokens.

    Their pages are page 0, to which everything may be written and from which nothing is read.
    """
    tokens = int(batch.query_start.numpy()[-1])
    more = size - tokens
    if not more:
        return batch
    return replace(
        batch,
        page_table=F.pad(batch.page_table, (0, 0, 0, more)),
        query_start=torch.cat(
            (batch.query_start, torch.arange(tokens + 1, size + 1, dtype=torch.int32))
        ),
        context_len=F.pad(batch.context_len, (0, more), value=1),
        parents=None if batch.parents is None else F.pad(batch.parents, (0, more), value=-1),
    )
