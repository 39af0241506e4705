"""Pages of random keys and values in a device's own virtual memory."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType

import torch
from torch import Tensor

from kvrt.errors import OutOfMemory
from kvrt.executor.backing import kv_tensor
from kvrt.spi import AttentionBatch, Device, KVFormat, KVLayout

FILLED_AT_ONCE = 1 << 28  # elements
PAGES_AT_ONCE = 4096  # of codes


class Pool:
    """As many pages as fit, up to those asked for. A context manager.

    Args:
        device: where.
        kv_heads: of the pages, which have one layer.
        head_dim: elements of a head.
        page_size: tokens of a page.
        tokens: wanted.
        leave: bytes of the device's memory not to be taken.
        kv: what they keep, bfloat16 or codes.
    """

    def __init__(
        self,
        device: Device,
        kv_heads: int,
        head_dim: int,
        page_size: int,
        tokens: int,
        leave: int,
        kv: KVFormat = "bfloat16",
    ) -> None:
        self.layout: KVLayout = KVLayout.packed(
            kv, layers=1, kv_heads=kv_heads, head_dim=head_dim, page_size=page_size
        )
        page_bytes = self.layout.page_bytes
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
        whole = kv_tensor(device.memory, self._span, self.layout)
        self.tensor: Tensor = whole[: mapped // self.layout.item_bytes]
        self.pages = mapped // page_bytes
        if self.layout.quantization is None:
            for part in self.tensor.split(FILLED_AT_ONCE):
                part.normal_()
        else:
            self._fill_with_codes()

    def _fill_with_codes(self) -> None:
        attention = self._device.attention
        compute = getattr(torch, self._device.info.compute_dtypes[0])
        for pages, numbers in self._numbers():
            k, v = numbers.to(compute)
            batch = AttentionBatch(
                kv=self.tensor,
                layout=self.layout,
                page_table=pages[None].int(),
                query_start=torch.tensor([0, len(k)], dtype=torch.int32),
                context_len=torch.tensor([len(k)], dtype=torch.int32),
            )
            attention.append(attention.plan(batch), 0, k, v)
        self._device.synchronize()

    def _numbers(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pages, and what is stored there: float32 [2, tokens, kv_heads, head_dim].

        The same each time.
        """
        layout, torch_device = self.layout, self._device.info.torch_device
        random = torch.Generator(torch_device).manual_seed(0)
        for pages in torch.arange(self.pages).split(PAGES_AT_ONCE):
            shape = (2, len(pages) * layout.page_size, layout.kv_heads, layout.head_dim)
            yield pages, torch.randn(shape, generator=random, device=torch_device)

    def without_scales(self, batch: AttentionBatch) -> AttentionBatch:
        """The batch over other pages: the same numbers in E4M3, as they are."""
        layout = self.layout
        shape = (-1, 2, layout.kv_heads, layout.page_size, layout.head_dim)
        parts = []
        for pages, numbers in self._numbers():
            paged = numbers.view(2, len(pages), layout.page_size, layout.kv_heads, -1)
            parts.append(paged.permute(1, 0, 3, 2, 4).reshape(shape).to(torch.float8_e4m3fn))
        plain = KVLayout.packed(
            "float16",  # only its strides count
            layers=1,
            kv_heads=layout.kv_heads,
            head_dim=layout.head_dim,
            page_size=layout.page_size,
        )
        return replace(batch, kv=torch.cat(parts).view(-1), layout=plain)

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
