"""`kvrt.spi.Recurrence` in torch's own operators, on any device."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvrt.model.branches import PLAIN
from kvrt.spi import StateActivation, StateBatch


class TorchPlan:
    """Which rows of the pages a step's tokens have, and those before them.

    Args:
        batch: of the step.
    """

    def __init__(self, batch: StateBatch) -> None:
        layout = batch.layout
        self.device = batch.kv.device
        whole = batch.kv.numel() // layout.width * layout.width
        self.rows = batch.kv[:whole].view(-1, layout.width)
        self._layout = layout
        self._table = batch.page_table.numpy()
        starts, contexts = batch.query_start.numpy(), batch.context_len.numpy()
        counts = np.diff(starts)
        self._sequence = np.repeat(np.arange(len(counts)), counts)
        first = contexts - counts
        self._position = np.arange(starts[-1]) - starts[self._sequence] + first[self._sequence]
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def before(self, back: int) -> tuple[Tensor, Tensor]:
        """The rows of the first layer that tokens so far before each token have; and where there is
        such a token: bool [tokens, 1]. Where there is none it is the token's own row."""
        if back not in self._known:
            there = self._position >= back
            rows = self._rows(np.where(there, self._position - back, self._position))
            self._known[back] = (
                torch.from_numpy(rows).to(self.device),
                torch.from_numpy(there).unsqueeze(1).to(self.device),
            )
        return self._known[back]

    def _rows(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        layout = self._layout
        pages = self._table[self._sequence, position // layout.page_size].astype(np.int64)
        return pages * (layout.layers * layout.page_size) + position % layout.page_size

    def of_layer(self, layer: int) -> int:
        """What is added to a row of the first layer."""
        return layer * self._layout.page_size


class TorchRecurrence:
    """Of operators whose bits do not depend on how many tokens there are."""

    def plan(self, batch: StateBatch) -> TorchPlan:
        return TorchPlan(batch)

    def convolve(
        self,
        plan: object,
        layer: int,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: StateActivation,
        out: Tensor,
    ) -> None:
        assert isinstance(plan, TorchPlan)
        first, kernel = plan.of_layer(layer), weight.shape[1]
        own, _ = plan.before(0)
        plan.rows.index_copy_(0, own + first, x)
        total = torch.zeros(x.shape, device=x.device)
        for back in range(kernel - 1, 0, -1):
            rows, there = plan.before(back)
            past = plan.rows.index_select(0, rows + first).float()
            total += torch.where(there, past, 0.0) * weight[:, kernel - 1 - back]
        total += x.float() * weight[:, kernel - 1]
        if bias is not None:
            total += bias
        out.copy_(total if activation == "none" else PLAIN[activation](total))
