"""New tokens that branch, taken apart into lines.

    a --+-- b -- c        row  0 1 2 3 4        branch 0  a b c        rows 0 1 2
        +-- d -- e                              branch 1  a d e        rows 3 4, slots 0 3 4

Tokens that follow one another stand in neighbouring rows, so a branch is a sequence whose last
tokens are its rows. What sets it apart is where its ancestors' keys and values lie: not in the
slots of their positions, but where their own branch has put them.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvrt.spi import AttentionBatch


@dataclass(frozen=True, slots=True)
class Lines:
    """A batch of branches, each a sequence of its own.

    The token at position p of branch b lies in slot p if p is below ``trunk[b]``, and otherwise in
    slot ``slots[b, p - trunk[b]]``. Slots are counted from the sequence's first token.

    Args:
        batch: without `parents`; one sequence for each branch, in the order of their rows.
        trunk: int32 [branches].
        slots: int32 [branches, longest], contiguous; the rest of a row is anything.
    """

    batch: AttentionBatch
    trunk: Tensor
    slots: Tensor

    def slots_of(self, branch: int, positions: Tensor) -> Tensor:
        """The slots of a branch's tokens at some positions, int64."""
        trunk = int(self.trunk[branch])
        moved = positions >= trunk
        slots = positions.clone()
        slots[moved] = self.slots[branch, positions[moved] - trunk].long()
        return slots


def owned(batch: AttentionBatch) -> AttentionBatch:
    """The batch, with a page table and lengths of its own: for plans that outlive their call."""
    return replace(
        batch,
        page_table=batch.page_table.clone(),
        query_start=batch.query_start.clone(),
        context_len=batch.context_len.clone(),
    )


def lines(batch: AttentionBatch) -> Lines:
    """The branches of a batch. Without `parents` its sequences have one each, and the tensors are
    the batch's; with them, those without new tokens have none.
    """
    if batch.parents is None:
        nothing = torch.empty(len(batch.context_len), 0, dtype=torch.int32)
        return Lines(batch, batch.context_len, nothing)
    parents, start = batch.parents.numpy(), batch.query_start.numpy()
    context = batch.context_len.numpy()
    sequences: list[int] = []
    ends: list[int] = []  # of the rows of each branch
    contexts: list[int] = []
    trunks: list[int] = []
    paths: list[NDArray[np.int32]] = []  # slots from the trunk on
    for s in range(len(context)):
        own = parents[start[s] : start[s + 1]]
        past = int(context[s]) - len(own)
        follows = own == np.arange(-1, len(own) - 1)
        borders = [0, *np.flatnonzero(~follows).tolist(), len(own)] if len(own) else [0]
        found: dict[int, NDArray[np.int32]] = {}  # by its first row: the rows of the whole line
        for first, stop in itertools.pairwise(borders):
            line = np.arange(first, stop, dtype=np.int32)
            if (parent := int(own[first])) >= 0:
                before = found[max(row for row in found if row <= parent)]
                line = np.concatenate((before[: np.searchsorted(before, parent) + 1], line))
            found[first] = line
            straight = bool(line[-1] == len(line) - 1)
            sequences.append(s)
            ends.append(int(start[s]) + stop)
            contexts.append(past + len(line))
            trunks.append(contexts[-1] if straight else past)
            paths.append(line[:0] if straight else past + line)
    slots = np.zeros((len(paths), max(map(len, paths), default=0)), np.int32)
    for row, path in zip(slots, paths, strict=True):
        row[: len(path)] = path
    return Lines(
        replace(
            batch,
            page_table=batch.page_table[sequences].contiguous(),
            query_start=torch.tensor([0, *ends], dtype=torch.int32),
            context_len=torch.tensor(contexts, dtype=torch.int32),
            parents=None,
        ),
        torch.tensor(trunks, dtype=torch.int32),
        torch.from_numpy(slots),
    )
