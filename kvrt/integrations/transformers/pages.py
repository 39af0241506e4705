"""A batch of sequences in pages, as `generate` has them, and attention over them."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor

from kvrt.executor.local import LocalPages
from kvrt.kv.rows import Rows
from kvrt.spi import AttentionBatch, AttentionParams, Device, KVLayout, StepBatch

MOST_PAGES = 2**31 - 1
"""That a group may ask addresses for: it gets as many as the device could ever hold."""


class BatchPages(Rows):
    """The rows of one batch, and what reads them.

    Args:
        device: its owner closes it after this.
        layouts: of each group of layers that see as far back.
        windows, limit_bytes: see `Rows`.

    Raises:
        CapacityError: the limit has no room for a single page.
        ConfigError: the device does not keep keys and values in that format.
    """

    def __init__(
        self,
        device: Device,
        layouts: Sequence[KVLayout],
        windows: Sequence[int],
        limit_bytes: int,
    ) -> None:
        super().__init__(LocalPages(device, layouts, MOST_PAGES), windows, limit_bytes)
        self._attention = device.attention
        self._plans: list[object] = []

    def begin(self, tokens: Sequence[int]) -> list[StepBatch]:
        batches = super().begin(tokens)
        self._plans = [self._attention.plan(cast(AttentionBatch, batch)) for batch in batches]
        return batches

    def append(self, group: int, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store the keys and values of this step's tokens, row after row: [tokens, heads, dim].

        Args:
            group: of the layer.
            layer: its place in the group.
        """
        self._attention.append(self._plans[group], layer, keys, values)

    def attend(
        self, group: int, layer: int, queries: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        """What this step's tokens, [tokens, heads, dim], see in a layer."""
        self._attention.run(self._plans[group], layer, queries, out, params)
