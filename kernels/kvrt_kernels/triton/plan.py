"""What the kernels of a step share, worked out on the host and sent to the device in one copy.

    int64  few       [sequences with few query tokens + 1, 7]       work.py names the columns
    int64  many      [sequences with many query tokens + 1, 7]
    int32  slots     [tokens, 2]                                    the page, and the place in it
    int32  pages     [sequences, max pages]                         the page table
    int32  branches  [sequences, longest]                           slots, if there are any

Branches of drafts are sequences here.

Nothing here asks the device for anything, so nothing waits for it.
"""

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from kvrt.errors import ContractError
from kvrt.spi import AttentionBatch, KVFormat, KVLayout
from kvrt_kernels import TRITON_HEAD_DIMS
from kvrt_kernels.tree import Lines, lines

FEW = 16
"""Sequences with up to so many query tokens have their contexts split among programs."""
COLUMNS = 7
WORD = 8
DTYPE: dict[KVFormat, tl.dtype] = {
    "float32": tl.float32,
    "bfloat16": tl.bfloat16,
    "float16": tl.float16,
    "int8": tl.int8,
    "fp8": tl.float8e4nv,
    "int4": tl.uint8,
}
"""What kernels take pages for; by it they know codes, of which two are in a byte of int4."""

Ints = NDArray[np.int64]


class Work:
    """The sequences of one kind, few query tokens or many.

    Args:
        sequences: their indices in the batch.
        queries: query tokens of each, in the same order.
    """

    def __init__(self, sequences: Ints, queries: Ints) -> None:
        self.sequences = sequences
        self.queries = int(queries.sum())
        self.longest = int(queries.max(initial=0))
        self.words = (len(sequences) + 1) * COLUMNS
        self.table = torch.empty(0)  # int64 [sequences + 1, COLUMNS] on the device

    def __len__(self) -> int:
        return len(self.sequences)

    def describe(
        self,
        words: Ints,
        pages: Ints,
        start: Ints,
        context: Ints,
        trunk: Ints,
        slots: Ints,
        work: Ints,
    ) -> None:
        """Write the table as the kernels read it into `words`, on the host.

        Args:
            pages: the address of each sequence's row of the page table.
            start: the batch's query_start.
            context: the batch's context_len.
            trunk: where each sequence's tokens begin to lie elsewhere.
            slots: the address of its row of the branches, less its trunk.
            work: how much work each of `sequences` is.
        """
        rows = words.reshape(-1, COLUMNS)
        rows[-1] = 0
        rows[0, 4] = 0
        columns = {0: pages, 1: start, 2: np.diff(start), 3: context, 5: trunk, 6: slots}
        for column, values in columns.items():
            rows[:-1, column] = values[self.sequences]
        rows[1:, 4] = work.cumsum()


class Plan:
    """A batch as the kernels take it.

    `segments` is the number of segments of all contexts that are split; `split` is true if any
    has more than one. `branches` is true if tokens may lie in other slots than their positions'.

    Args:
        batch: the step's sequences.
        segment: tokens of one part of a split context.
        device: where the kernels run.
        recorded: the plan stays where it is, so that calls recorded with it can be made again
            after `update`; only its page table may move.

    Raises:
        ContractError: a head_dim or value_dim that is not among `kvrt_kernels.TRITON_HEAD_DIMS`.
    """

    def __init__(
        self, batch: AttentionBatch, segment: int, device: torch.device, recorded: bool = False
    ) -> None:
        self.branches = batch.parents is not None
        branching = lines(batch)
        batch, layout = branching.batch, batch.layout
        for name, dim in (("head_dim", layout.head_dim), ("value_dim", layout.value_dim)):
            if dim not in TRITON_HEAD_DIMS:
                raise ContractError(f"{name} must be among {TRITON_HEAD_DIMS}, not {dim}")
        self.layout: KVLayout = layout
        self.kv = batch.kv
        self.dtype = DTYPE[layout.format]
        self.recorded = recorded
        self.floats_per_segment = 0  # of scratch memory, as the recorded calls need it
        self._segment = segment
        self._device = device
        self._start = batch.query_start.numpy().astype(np.int64)
        queries = np.diff(self._start)
        self.tokens = int(self._start[-1])
        self._sequence = np.repeat(np.arange(len(queries)), queries)
        few, many = np.flatnonzero((queries > 0) & (queries <= FEW)), np.flatnonzero(queries > FEW)
        self.few, self.many = Work(few, queries[few]), Work(many, queries[many])
        self._many_queries = queries[many]
        tables = self.few.words + self.many.words
        self._fixed = tables + self.tokens
        words = self._words(branching)
        self._home = torch.empty((1 + recorded) * words, dtype=torch.int64, device=device)
        self._away: Tensor | None = None
        self.few.table = self._home[: self.few.words]
        self.many.table = self._home[self.few.words : tables]
        self.slots = self._home[tables : self._fixed].view(torch.int32)
        self._send(branching)

    def base(self, layer: int) -> int:
        """The address of a layer's first key."""
        return self.kv.data_ptr() + layer * self.layout.layer_stride * self.kv.element_size()

    def update(self, batch: AttentionBatch) -> None:
        """Take the page table and the contexts of another batch with the same `query_start`.

        Raises:
            ContractError: its `query_start` is another, or it has branches.
        """
        if not np.array_equal(batch.query_start.numpy(), self._start):
            raise ContractError("a recorded step takes only batches with its own query_start")
        if self.branches or batch.parents is not None:
            raise ContractError("a recorded step takes no batches with parents")
        self._send(lines(batch))

    def _send(self, branching: Lines) -> None:
        """Describe the batch to the device."""
        words = self._words(branching)
        staged = self._describe(branching, words, self._place(words))
        if self._away is not None:
            self._away[:words].copy_(staged, non_blocking=True)
            staged = staged[: self._fixed]
        self._home[: len(staged)].copy_(staged, non_blocking=True)

    def _words(self, branching: Lines) -> int:
        words = self._fixed + (branching.batch.page_table.numel() + 1) // 2
        if self.branches:
            words += (branching.slots.numel() + 1) // 2
        return words

    def _place(self, words: int) -> int:
        """The address of the page table, which goes elsewhere once its first place is too small."""
        place = self._home if self._away is None else self._away
        if words > len(place):
            place = self._away = torch.empty(2 * words, dtype=torch.int64, device=self._device)
        return place.data_ptr() + self._fixed * WORD

    def _describe(self, branching: Lines, words: int, pages: int) -> Tensor:
        """The whole buffer, on the host. `pages`: where on the device the page table will be."""
        batch = branching.batch
        start, context = self._start, batch.context_len.numpy().astype(np.int64)
        table = batch.page_table.numpy()
        # A fresh one for each step: torch reuses pinned memory when the copies from it are done.
        staged = torch.empty(words, dtype=torch.int64, pin_memory=self._device.type != "cpu")
        buffer = staged.numpy()

        segments = -(-context[self.few.sequences] // self._segment)
        self.segments, self.split = int(segments.sum()), bool((segments > 1).any())
        row = pages + np.arange(len(context)) * (table.shape[1] * table.itemsize)
        position = slot = np.arange(self.tokens) + (context - start[1:])[self._sequence]
        variable = buffer[self._fixed :].view(np.int32)
        variable[: table.size] = table.ravel()
        trunk, elsewhere = context, np.zeros_like(context)
        if self.branches:
            trunk, moved = branching.trunk.numpy().astype(np.int64), branching.slots.numpy()
            at = table.size + table.size % 2
            variable[at : at + moved.size] = moved.ravel()
            elsewhere = at + np.arange(len(moved)) * moved.shape[1] - trunk
            elsewhere = pages + elsewhere * table.itemsize
            beyond = position - trunk[self._sequence]
            slot = position.copy()
            slot[beyond >= 0] = moved[self._sequence[beyond >= 0], beyond[beyond >= 0]]

        many = slice(self.few.words, self.few.words + self.many.words)
        for work, part, size in (
            (self.few, slice(0, many.start), segments),
            (self.many, many, self._many_queries),
        ):
            work.describe(buffer[part], row, start, context, trunk, elsewhere, size)
        slots = buffer[many.stop : self._fixed].view(np.int32).reshape(-1, 2)
        slots[:, 0] = table[self._sequence, slot // self.layout.page_size]
        slots[:, 1] = slot % self.layout.page_size
        return staged
