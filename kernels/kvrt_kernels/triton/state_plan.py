"""What recurrent layers share in a step, sent to the device in one copy.

int32  starts     [sequences + 1]           the batch's query_start
int32  contexts   [sequences]
int32  pages      [sequences, columns]      the page table
int32  sequences  [tokens]                  whose each token is
"""

import numpy as np
import torch
from torch import Tensor

from kvrt.spi import StateBatch

TABLES = ["starts", "contexts", "pages"]
COUNTS = ["columns"]
"""Arguments that change from step to step: not to be compiled for what they happen to be."""


class StatePlan:
    """A batch as the kernels take it.

    Args:
        batch: the step's sequences.
        device: where the kernels run.
    """

    def __init__(self, batch: StateBatch, device: torch.device) -> None:
        self.layout = batch.layout
        self.kv = batch.kv
        start, table = batch.query_start.numpy(), batch.page_table.numpy()
        self.count, self.columns = table.shape
        self.tokens = int(start[-1])
        parts = (
            start,
            batch.context_len.numpy(),
            table.ravel(),
            np.repeat(np.arange(self.count, dtype=np.int32), np.diff(start)),
        )
        sizes = [len(part) for part in parts]
        # A fresh one for each step: torch reuses pinned memory when the copies from it are done.
        staged = torch.empty(sum(sizes), dtype=torch.int32, pin_memory=device.type != "cpu")
        np.concatenate(parts, out=staged.numpy())
        home = torch.empty(len(staged), dtype=torch.int32, device=device)
        home.copy_(staged, non_blocking=True)
        starts, contexts, pages, self.sequences = home.split_with_sizes(sizes)
        self.tables: tuple[Tensor, Tensor, Tensor] = starts, contexts, pages

    def base(self, layer: int) -> int:
        """The address of a layer's first row."""
        return self.kv.data_ptr() + layer * self.layout.layer_stride * self.kv.element_size()
