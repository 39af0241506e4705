"""KV pages with known content on any device, and one step of attention over them.

    hole | chunk chunk | 8 GiB of hole | chunk chunk | hole | hole        the span
           ^ pages are taken from both runs, in random order; all else is NaN

so that a read of a page or a slot that is not the sequence's own shows in the result. Half of the
pages lie where 32 bits do not count the bytes, nor 31 bits the elements, nor 15 bits the pages.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType

import torch
from torch import Tensor

from kvrt.executor.backing import kv_tensor
from kvrt.spi import (
    AttentionBatch,
    AttentionParams,
    Device,
    DType,
    KVFormat,
    KVLayout,
    PageLayout,
    StateBatch,
    StateLayout,
)
from kvrt.testing import reference
from kvrt.wrappers.rules import TORCH_DTYPE

TOLERANCE: dict[KVFormat, float] = {
    "float32": 2e-5,
    "float16": 2e-3,
    "bfloat16": 1.2e-2,
    "int8": 2e-3,
    "fp8": 2e-3,
    "int4": 2e-3,
}
"""Allowed error of a result near 1, by the coarsest dtype on its way: a few roundings of it. What
is kept as codes is read by the reference, too: what remains is the rounding of q."""


FAR = 2**33
"""Bytes of a span before its second run: addresses cost nothing."""

NAN_BYTE = 0xFF
"""What is read of such bytes is NaN in every format."""


class PagedKV:
    """A span in which `pages` pages are mapped. A context manager: gives all back at its end.

    Args:
        device: where.
        layout: of the pages; the page must be the outermost axis.
        pages: how many can be taken.
        seed: for the order in which they are taken.
    """

    def __init__(self, device: Device, layout: PageLayout, pages: int, *, seed: int = 0) -> None:
        granularity = device.info.granularity
        page_bytes = layout.page_bytes
        # Half of the pages in each of two runs, and room for the page that begins before the run.
        run = math.ceil((math.ceil(pages / 2) + 1) * page_bytes / granularity)
        far = max(FAR // granularity, run + 1) + 1
        self._device = device
        self.layout = layout
        self.span = device.memory.reserve((far + run + 2) * granularity)
        self.tensor = kv_tensor(device.memory, self.span, layout)
        everything = self.tensor.view(torch.uint8)
        self._chunks = {}
        free: list[int] = []
        for first in (1, far):
            for at in range(first * granularity, (first + run) * granularity, granularity):
                chunk = self._chunks[at] = device.memory.create()
                device.memory.map(self.span, at, chunk)
            start, stop = first * granularity, (first + run) * granularity
            everything[start:stop] = NAN_BYTE
            free += range(math.ceil(start / page_bytes), stop // page_bytes)
        self._random = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(free), generator=self._random)
        self._free = [free[i] for i in order.tolist()]

    def take(self, tokens: int) -> list[int]:
        """Pages, in random order, for that many tokens."""
        count = math.ceil(tokens / self.layout.page_size)
        taken, self._free = self._free[:count], self._free[count:]
        if len(taken) < count:
            raise ValueError(f"{count} pages asked for, {len(taken)} left")
        return taken

    def batch(
        self, tables: Sequence[Sequence[int]], contexts: Sequence[int], queries: Sequence[int]
    ) -> AttentionBatch:
        """A batch over those pages; the unused entries of its page table are not pages at all."""
        assert isinstance(self.layout, KVLayout)
        return AttentionBatch(self.tensor, self.layout, *_tables(tables, contexts, queries))

    def states(
        self, tables: Sequence[Sequence[int]], contexts: Sequence[int], queries: Sequence[int]
    ) -> StateBatch:
        """Likewise, of layers with a recurrence."""
        assert isinstance(self.layout, StateLayout)
        return StateBatch(self.tensor, self.layout, *_tables(tables, contexts, queries))

    def close(self) -> None:
        for at, chunk in self._chunks.items():
            self._device.memory.unmap(self.span, at, chunk)
            self._device.memory.destroy(chunk)
        self._chunks = {}
        self._device.memory.release(self.span)

    def __enter__(self) -> "PagedKV":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._device.synchronize()
        self.close()


def _tables(
    tables: Sequence[Sequence[int]], contexts: Sequence[int], queries: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The page table, where each sequence's tokens begin, and how long its context is."""
    width = max(map(len, tables)) + 2
    page_table = torch.full((len(tables), width), -1, dtype=torch.int32)
    page_table[:, -1] = 2**31 - 1
    for s, pages in enumerate(tables):
        page_table[s, : len(pages)] = torch.tensor(pages)
    starts = torch.tensor([0, *queries]).cumsum(0)
    return page_table, starts.to(torch.int32), torch.tensor(contexts, dtype=torch.int32)


@dataclass(frozen=True, slots=True)
class Case:
    """One step of attention. The defaults are small and odd.

    Args:
        contexts: tokens of each sequence, those of this step included.
        queries: tokens each sequence brings in this step.
        scale: None for one that is not the usual ``head_dim ** -0.5``.
        value_dim: 0: as many as of a key.
        shared: values are the beginning of the keys.
    """

    contexts: tuple[int, ...] = (1, 37, 130, 16, 65)
    queries: tuple[int, ...] = (1, 1, 19, 16, 2)
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 64
    page_size: int = 16
    layers: int = 2
    compute: DType = "float32"
    kv: KVFormat = "float32"
    scale: float | None = None
    window: int = 0
    softcap: float = 0.0
    sinks: int = 0
    causal: bool = True
    value_dim: int = 0
    shared: bool = False

    @property
    def params(self) -> AttentionParams:
        scale = 0.7 * self.head_dim**-0.5 if self.scale is None else self.scale
        return AttentionParams(scale, self.window, self.softcap, self.sinks, self.causal)

    @property
    def layout(self) -> KVLayout:
        return KVLayout.packed(
            self.kv,
            layers=self.layers,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            page_size=self.page_size,
            value_dim=self.value_dim,
            shared=self.shared,
        )

    @property
    def tolerance(self) -> float:
        return max(TOLERANCE[self.compute], TOLERANCE[self.kv])

    @property
    def pages(self) -> int:
        return sum(math.ceil(length / self.page_size) for length in self.contexts)


def randoms(device: Device, dtype: DType, *shape: int, seed: int) -> Tensor:
    """Normally distributed numbers on the device, the same ones on every device."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator)
    return values.to(TORCH_DTYPE[dtype]).to(device.info.torch_device)


def fill_past(batch: AttentionBatch, *, seed: int = 0) -> None:
    """Random keys and values for the tokens that came before this step, in every layer."""
    generator = torch.Generator().manual_seed(seed)
    layout = batch.layout
    for s in range(len(batch.context_len)):
        new = reference.rows(batch, s)
        past = torch.arange(int(batch.context_len[s]) - (new.stop - new.start))
        for layer in range(layout.layers):
            for kv in (0,) if layout.shared else (0, 1):
                dim = reference.side(layout, kv).dim
                values = torch.randn((len(past), layout.kv_heads, dim), generator=generator)
                reference.write(batch, s, layer, kv, past, values)


def attend(
    device: Device, case: Case, *, seed: int = 0, sink_logits: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The device's result and the reference's, each [layers, tokens, heads, value_dim].

    The last tokens' keys and values are stored by the device, those before by the reference.
    """
    with PagedKV(device, case.layout, case.pages, seed=seed) as pages:
        tables = [pages.take(length) for length in case.contexts]
        batch = pages.batch(tables, case.contexts, case.queries)
        fill_past(batch, seed=seed)
        return run_layers(device, batch, case, seed=seed, sink_logits=sink_logits)


def run_layers(
    device: Device,
    batch: AttentionBatch,
    case: Case,
    *,
    seed: int = 0,
    sink_logits: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Append random keys and values and attend with random queries, layer after layer."""
    tokens, value_dim = int(batch.query_start[-1]), batch.layout.value_dim
    params = replace(case.params, sink_logits=sink_logits)
    plan = device.attention.plan(batch)
    got, want = [], []
    for layer in range(case.layers):
        k, v = (
            randoms(device, case.compute, tokens, case.kv_heads, dim, seed=seed + i)
            for i, dim in ((2 * layer + 1, case.head_dim), (2 * layer + 2, value_dim))
        )
        q = randoms(device, case.compute, tokens, case.heads, case.head_dim, seed=seed + 100)
        nothing = torch.full((tokens, case.heads, value_dim), math.nan)
        out = nothing.to(TORCH_DTYPE[case.compute]).to(device.info.torch_device)
        device.attention.append(plan, layer, k, v)
        device.attention.run(plan, layer, q, out, params)
        device.synchronize()
        reference.append(batch, layer, k, v)
        got.append(out.cpu().double())
        want.append(reference.attention(batch, layer, q, params))
    return torch.stack(got), torch.stack(want)


def mismatch(got: Tensor, want: Tensor, tolerance: float) -> str:
    """Where two results differ by more than the tolerance; empty if nowhere.

    A value is close if it is within ``tolerance * (1 + |want|)``; NaN is close to nothing.
    """
    if got.shape != want.shape:
        return f"shape {list(got.shape)}, expected {list(want.shape)}"
    got, want = got.cpu().double(), want.cpu().double()
    bad = ~((got - want).abs() <= tolerance * (1 + want.abs()))
    if not bad.any():
        return ""
    lines = [f"{int(bad.sum())} of {bad.numel()} differ by more than {tolerance}, the first:"]
    for index in bad.nonzero()[:5].tolist():
        where = tuple(index)
        lines.append(f"  {index}: {got[where]:.6g}, expected {want[where]:.6g}")
    return "\n".join(lines)


def assert_agrees(device: Device, case: Case, *, seed: int = 0) -> None:
    """That the device's result is the reference's."""
    problem = mismatch(*attend(device, case, seed=seed), case.tolerance)
    assert not problem, f"{case}: {problem}"
