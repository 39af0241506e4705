"""Images in a step: their states stand in place of embeddings, and may see each other.

    text  text  [ image  image  image  image ]  text        a block of four tokens
    ----------------------------------------------------
    text                                                    sees what is before it, as ever
          image                                             each sees all of the block, and as far
                                                            back as its layer lets it

Where they do, attention is asked for each token of a block as for a sequence of its own, which has
the context of the block's last token: so any device computes it, by the kernel that a decode step
has. In a layer with a window that is not yet right for those further in front, whose windows reach
further back; these are asked for once more, one by one, with a window that is as much wider.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvrt.model.decoder.rope import RotationTable, positions_of
from kvrt.model.weights.layers import LayerWeights
from kvrt.spi import AttentionBatch, AttentionParams, PagedAttention, Rotation, StepBatch


class Seen(NamedTuple):
    """A part of an image that a step computes.

    Args:
        row: the first of the step's tokens that stand for it.
        states: [tokens, hidden], of each of those; behind each may be as much again for each of the
            first layers, which is added to what that gives.
        together: they see each other; then the image's last token is among them.
    """

    row: int
    states: Tensor
    together: bool

    @property
    def rows(self) -> slice:
        return slice(self.row, self.row + len(self.states))


class Turns(NamedTuple):
    """By what queries and keys are rotated where that is not their place in the text.

    Args:
        shifts: int64 [3, tokens]; added to a token's place, its positions in the text, by row and
            by column.
        channels: int64 [pairs]; by which of these each pair of a head is rotated.
    """

    shifts: NDArray[np.int64]
    channels: NDArray[np.int64]

    def positions(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of tokens at some places, and of padding behind them: [3, places]."""
        more = len(places) - self.shifts.shape[1]
        return places + np.pad(self.shifts, ((0, 0), (0, more)))


def turned(
    table: RotationTable, places: NDArray[np.int64], turns: Turns | None, into: Rotation
) -> None:
    """Write what tokens at some places, [tokens], are rotated by."""
    if turns is None:
        table.select(places, into)
    else:
        table.select_each(turns.positions(places), turns.channels, into)


def put(seen: Sequence[Seen], x: Tensor) -> None:
    """Write what was seen over the embeddings of a step's tokens, [tokens, hidden]."""
    for one in seen:
        x[one.rows] = one.states[:, : x.shape[1]]


def deepened(
    finish: Callable[[Tensor, LayerWeights], None], seen: Sequence[Seen]
) -> Callable[[Tensor, LayerWeights], None]:
    """What ends a layer, where what was seen may be added to it.

    Args:
        finish: what ends it otherwise.
    """
    layers = itertools.count(1)

    def both(x: Tensor, w: LayerWeights) -> None:
        finish(x, w)
        start = next(layers) * x.shape[1]
        for one in seen:
            if one.states.shape[1] > start:
                x[one.rows] += one.states[:, start : start + x.shape[1]]

    return both if seen else finish


class Plans(Sequence[object]):
    """The plans of a step in which tokens see each other, in place of a list of these.

    Pages have one plan at a time, the latest. So it is made anew for what a layer appends, and for
    what it attends to; that takes a hundredth of the layer.

    Args:
        attention: the device's.
        batches: of the step.
        plan: makes the plan of one.
        seen: blocks of tokens, among others.
    """

    def __init__(
        self,
        attention: PagedAttention,
        batches: Sequence[StepBatch],
        plan: Callable[[StepBatch], object],
        seen: Sequence[Seen],
    ) -> None:
        self._attention = attention
        self._batches = batches
        self._plan = plan
        self._blocks = [one.rows for one in seen if one.together]
        self._apart: dict[int, AttentionBatch] = {}
        self._current = 0

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, batch: int | slice) -> Any:
        """The plan of a layer that comes next; or those of several batches."""
        if isinstance(batch, slice):
            return [*map(self._plan, self._batches[batch])]
        self._current = batch
        return self._plan(self._batches[batch])

    def run(
        self, plan: object, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        """See `kvrt.spi.PagedAttention.run`."""
        if self._current not in self._apart:
            own = cast(AttentionBatch, self._batches[self._current])
            self._apart[self._current] = _apart(own, self._blocks)
        apart, attention = self._apart[self._current], self._attention
        attention.run(attention.plan(apart), layer, q, out, params)
        for row, behind, own in _reaching(apart, self._blocks, params.window):
            wider = replace(params, window=params.window + behind)
            attention.run(attention.plan(own), layer, q[row : row + 1], out[row : row + 1], wider)


def plans_of(
    attention: PagedAttention,
    batches: Sequence[StepBatch],
    plan: Callable[[StepBatch], object],
    seen: Sequence[Seen],
) -> Sequence[object]:
    """The plans of a step; see `Plans`."""
    if any(one.together for one in seen):
        return Plans(attention, batches, plan, seen)
    return [*map(plan, batches)]


def _reaching(
    apart: AttentionBatch, blocks: Sequence[slice], window: int
) -> Iterator[tuple[int, int, AttentionBatch]]:
    """The tokens whose window reaches further back than that of the last of their blocks: of each
    its row, how many of the block come after it, and a batch of itself."""
    starts, contexts = apart.query_start.tolist(), apart.context_len.tolist()
    seqs = {row: seq for seq, row in enumerate(starts[:-1])}
    for block in blocks:
        if 0 < window < contexts[seqs[block.start]]:
            for row in range(block.start, block.stop - 1):
                yield row, block.stop - 1 - row, _one(apart, seqs[row])


def _apart(batch: AttentionBatch, blocks: Sequence[slice]) -> AttentionBatch:
    """A batch in which each token of a block is a sequence, as if the last of the block were its
    own, and what stands between blocks is others."""
    after = (positions_of(batch) + 1).tolist()
    ends = {
        row: after[block.stop - 1] for block in blocks for row in range(block.start, block.stop)
    }
    starts = batch.query_start.tolist()
    rows = sorted({*starts, *ends, *(block.stop for block in blocks)})
    seqs = torch.searchsorted(batch.query_start, torch.tensor(rows[:-1]), right=True) - 1
    contexts = [ends.get(row, after[stop - 1]) for row, stop in itertools.pairwise(rows)]
    parents = batch.parents
    if parents is not None:
        parents, cut = parents.clone(), {*rows} - {*starts}
        for row, stop in itertools.pairwise(rows):
            if row in cut or stop in cut:
                parents[row:stop] = torch.arange(-1, stop - row - 1)
    return replace(
        batch,
        page_table=batch.page_table.index_select(0, seqs),
        query_start=torch.tensor(rows, dtype=torch.int32),
        context_len=torch.tensor(contexts, dtype=torch.int32),
        parents=parents,
    )


def _one(batch: AttentionBatch, seq: int) -> AttentionBatch:
    """One sequence of a batch, of one token."""
    return replace(
        batch,
        page_table=batch.page_table[seq : seq + 1],
        query_start=torch.tensor([0, 1], dtype=torch.int32),
        context_len=batch.context_len[seq : seq + 1],
        parents=None,
    )
