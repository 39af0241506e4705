"""The executor of one device, as the KV memory asks it."""

from collections.abc import Iterator

import pytest
import torch

from kvrt.errors import DeviceError
from kvrt.executor.interface import Fetch, Save
from kvrt.executor.local import LocalExecutor, LocalPages
from kvrt.kv.cache import KVCache
from kvrt.kv.pages.table import Change
from kvrt.spi import AttentionBatch, Device

from .shapes import CHUNK, SIZE, layout

KINDS = ["many in a chunk", "straddling"]


@pytest.fixture
def pages(null_device: Device) -> LocalPages:
    return LocalPages(null_device, [layout(kind) for kind in KINDS], 64)


@pytest.fixture
def cache(pages: LocalPages) -> Iterator[KVCache]:
    """Of two groups, in which the sequences came in another order: their rows differ."""
    cache = KVCache(pages, limit_bytes=40 * CHUNK, windows=[(0, 0), (SIZE, 0)])
    for seq, tokens in (("a", 3 * SIZE), ("b", SIZE), ("a", 2 * SIZE), ("b", 2)):
        change = cache.table.grow({seq: tokens})
        assert isinstance(change, Change)
        assert cache.commit(change) is None
    assert cache.table.pages("b", 0) != cache.table.pages("b", 1)
    yield cache
    cache.close()


def test_a_step_has_a_batch_for_each_group_over_its_own_pages(
    pages: LocalPages, cache: KVCache
) -> None:
    batches = pages.batches(cache.step(["b", "a"], [2, 1], parents=[-1, -1, -1]))
    assert [batch.layout for batch in batches] == [layout(kind) for kind in KINDS]
    for group, batch in enumerate(batches):
        for row, seq in enumerate("ba"):
            own = cache.table.pages(seq, group)
            assert tuple(batch.page_table[row, : len(own)].tolist()) == own
        assert batch.query_start.tolist() == [0, 2, 3]
        assert batch.context_len.tolist() == [SIZE + 2, 5 * SIZE]
        assert batch.parents is not None
        assert batch.parents.tolist() == [-1, -1, -1]


def test_pages_of_each_group_go_to_host_memory_and_come_back(
    pages: LocalPages, cache: KVCache
) -> None:
    places = [(cache.table.pages("a", group)[-1], group) for group in range(2)]
    hosts = [pages.host_buffer(pages.layouts[group].page_bytes) for _, group in places]
    for n, place in enumerate(places):
        pages.page(*place).fill_(n + 1)
    saves = [Save(page, host, group) for (page, group), host in zip(places, hosts, strict=True)]
    for ticket in pages.copies(saves):
        assert ticket.wait()
    assert [host.unique().tolist() for host in hosts] == [[1], [2]]
    for place in places:
        pages.page(*place).zero_()
    for ticket in pages.copies([Fetch(save.page, save.host, save.group) for save in saves]):
        assert ticket.wait()
    assert [pages.page(*place).unique().tolist() for place in places] == [[1], [2]]


def test_a_pass_has_the_arrays_of_its_step_and_whose_fault_it_is_if_it_fails(
    null_device: Device,
) -> None:
    def forward(tokens: torch.Tensor, batches: object, wanted: torch.Tensor) -> torch.Tensor:
        assert isinstance(batches, list)
        assert all(isinstance(batch, AttentionBatch) for batch in batches)
        return tokens[wanted.long()][:, None].float()

    executor = LocalExecutor(null_device, [layout()], 64, forward)
    cache = KVCache(executor, limit_bytes=16 * CHUNK)
    running = executor.launch(cache.step([], [], [7, 8, 9], [2, 0]))
    assert running.fence.wait()
    assert running.logits.tolist() == [[9.0], [7.0]]
    with pytest.raises(DeviceError, match="the forward pass raised IndexError"):
        executor.launch(cache.step([], [], [7], [3]))
    cache.close()
