"""A paged cache with random content, and the ragged batches that go with it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import kvrt_kernels
import pytest
import torch
from kvrt_kernels import attention, reference
from torch import Tensor

from kvrt.spi import AttentionBatch, AttentionParams, KVFormat, KVLayout


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", kvrt_kernels.isas(), indirect=True, scope="module")


@pytest.fixture(scope="module")
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that runs here, in use."""
    before = kvrt_kernels.isa()
    kvrt_kernels.set_isa(request.param)
    yield request.param
    kvrt_kernels.set_isa(before)


@dataclass
class Cache:
    """Pages of two layers; the batch's pages lie scattered among pages of NaN.

    `lengths` are the contexts, `kv` holds their keys and values in every layer; slots that no
    token owns hold NaN, so that whoever reads one cannot hide it.
    """

    kv: Tensor
    layout: KVLayout
    table: Tensor
    lengths: list[int]

    def batch(self, queries: dict[int, tuple[int, int]]) -> AttentionBatch:
        """Sequence s with context `queries[s][1]`, of which the last `queries[s][0]` are new."""
        rows = list(queries)
        counts = torch.tensor([0] + [queries[s][0] for s in rows])
        return AttentionBatch(
            kv=self.kv,
            layout=self.layout,
            page_table=self.table[rows].contiguous(),
            query_start=counts.cumsum(0).int(),
            context_len=torch.tensor([queries[s][1] for s in rows], dtype=torch.int32),
        )


def make_cache(
    lengths: list[int],
    *,
    dtype: KVFormat = "float32",
    kv_heads: int = 2,
    head_dim: int = 64,
    page_size: int = 16,
    seed: int = 0,
) -> Cache:
    random = torch.Generator().manual_seed(seed)
    counts = [-(-n // page_size) for n in lengths]
    pages = sum(counts) + 3
    layout = KVLayout.packed(
        dtype,
        layers=2,
        kv_heads=kv_heads,
        head_dim=head_dim,
        page_size=page_size,
    )
    kv = torch.full((pages * layout.page_bytes,), 0xFF, dtype=torch.uint8)
    order = torch.randperm(pages, generator=random).int()
    table = torch.full((len(lengths), max(counts) + 2), 2**31 - 1, dtype=torch.int32)
    for s, mine in enumerate(order[: sum(counts)].split(counts)):
        table[s, : counts[s]] = mine
    made = Cache(kv.view(getattr(torch, layout.storage)), layout, table, lengths)
    everything = made.batch({s: (n, n) for s, n in enumerate(lengths)})
    for layer in range(layout.layers):
        k, v = torch.randn(2, sum(lengths), kv_heads, head_dim, generator=random)
        reference.append(reference.plan(everything), layer, k, v)
    return made


@pytest.fixture(scope="session")
def cache() -> Callable[..., Cache]:
    return make_cache


@pytest.fixture(scope="session")
def attend() -> Callable[..., Tensor]:
    """Attention of a batch with the native kernels, or by another module of the same functions."""

    def run(
        batch: AttentionBatch,
        q: Tensor,
        params: AttentionParams,
        *,
        layer: int = 1,
        threads: int = 2,
        by: ModuleType = attention,
    ) -> Tensor:
        out = torch.full_like(q, float("nan"))
        by.run(by.plan(batch), layer, q, out, params, threads)
        return out

    return run
