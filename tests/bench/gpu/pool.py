"""Pages of random keys and values in a device's own virtual memory."""

from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

import torch
from torch import Tensor

from kvrt.errors import OutOfMemory
from kvrt.spi import AttentionBatch, Device, KVLayout

FILLED_AT_ONCE = 1 << 28  # elements


class Pool:
    """As many bfloat16 pages as fit, up to those asked for. A context manager.

    Args:
        device: where.
        kv_heads: of the pages, which have one layer.
        head_dim: elements of a head.
        page_size: tokens of a page.
        tokens: wanted.
        leave: bytes of the device's memory not to be taken.
    """

    def __init__(
        self, device: Device, kv_heads: int, head_dim: int, page_size: int, tokens: int, leave: int
    ) -> None:
        self.layout: KVLayout = KVLayout.packed(
            "bfloat16", layers=1, kv_heads=kv_heads, head_dim=head_dim, page_size=page_size
        )
        page_bytes = self.layout.page_stride * 2
        size = device.info.granularity
        room = max(0, device.memory.info().free - leave) // size
        chunks = min(-(-tokens // page_size * page_bytes // size), room)
        if not chunks:
            raise OutOfMemory("no memory is left for keys and values", needed=size)
        self._device = device
        self._span = device.memory.reserve(chunks * size)
        self._chunks = []
        with suppress(OutOfMemory):  # then with those that there are
            for n in range(chunks):
                chunk = device.memory.create()
                device.memory.map(self._span, n * size, chunk)
                self._chunks.append(chunk)
        mapped = len(self._chunks) * size
        self.tensor: Tensor = device.memory.tensor(self._span, "bfloat16")[: mapped // 2]
        for part in self.tensor.split(FILLED_AT_ONCE):
            part.normal_()
        self.pages = mapped // page_bytes

    def holds(self, sequences: int, context: int) -> bool:
        return sequences * -(-context // self.layout.page_size) <= self.pages

    def batch(self, queries: Sequence[int], contexts: Sequence[int]) -> AttentionBatch:
        """Sequences whose pages lie in random order."""
        counts = [-(-n // self.layout.page_size) for n in contexts]
        order = torch.randperm(self.pages, generator=torch.Generator().manual_seed(0)).int()
        table = torch.zeros(len(counts), max(counts), dtype=torch.int32)
        for row, pages in zip(table, order[: sum(counts)].split(counts), strict=True):
            row[: len(pages)] = pages
        return AttentionBatch(
            kv=self.tensor,
            layout=self.layout,
            page_table=table,
            query_start=torch.tensor([0, *queries]).cumsum(0).int(),
            context_len=torch.tensor(contexts, dtype=torch.int32),
        )

    def contiguous(self, sequences: int, context: int) -> tuple[Tensor, Tensor]:
        """Keys and values [sequences, kv heads, context, head_dim], in the same memory."""
        shape = (sequences, self.layout.kv_heads, context, self.layout.head_dim)
        half = sequences * self.layout.kv_heads * context * self.layout.head_dim
        return self.tensor[:half].view(shape), self.tensor[half : 2 * half].view(shape)

    def close(self) -> None:
        memory, size = self._device.memory, self._device.info.granularity
        self._device.synchronize()
        for n, chunk in enumerate(self._chunks):
            memory.unmap(self._span, n * size, chunk)
            memory.destroy(chunk)
        self._chunks = []
        memory.release(self._span)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
