"""The checking wrapper lets a recorded step be replayed for batches of its own kind only."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from kvrt import registry
from kvrt.errors import ContractError
from kvrt.spi import (
    AttentionBatch,
    AttentionParams,
    Capability,
    Device,
    DeviceInfo,
    GraphCapture,
    KVLayout,
)
from kvrt.testing.paged import PagedKV, fill_past
from kvrt.wrappers import Checked
from kvrt.wrappers.parts import WrappedGraphs
from kvrt.wrappers.wrapper import Wrapper

LAYOUT = KVLayout.packed("float32", layers=2, kv_heads=2, head_dim=16, page_size=4)


class OneGrouping(Wrapper):
    """A device whose recorded steps serve batches of the recorded rows only."""

    @property
    def info(self) -> DeviceInfo:
        info = super().info
        return replace(info, capabilities=info.capabilities - {Capability.RAGGED_GRAPHS})


@pytest.fixture(params=[True, False], ids=["all calls checked", "batches checked"])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    checked = Checked(OneGrouping(registry.load("cpu").open()), layers=request.param)
    yield checked
    checked.close()


@pytest.fixture
def graphs(device: Device) -> GraphCapture:
    found = device.extension(GraphCapture)  # type: ignore[type-abstract]
    assert found is not None
    return found


@pytest.fixture
def pages(device: Device) -> Iterator[PagedKV]:
    with PagedKV(device, LAYOUT, 12) as pages:
        yield pages


@pytest.fixture
def batch(pages: PagedKV) -> AttentionBatch:
    batch = pages.batch([pages.take(9), pages.take(1)], [9, 1], [1, 1])
    fill_past(batch)
    return batch


@pytest.fixture
def record(device: Device) -> Callable[[Sequence[object]], None]:
    x = torch.ones(2, 2, 16)
    out = torch.zeros_like(x)

    def record(plans: Sequence[object]) -> None:
        for plan in plans:
            device.attention.append(plan, 0, x, x)
            device.attention.run(plan, 0, x, out, AttentionParams(0.25))

    return record


def test_another_batch_is_consistent_and_of_the_recorded_rows(
    graphs: GraphCapture, batch: AttentionBatch, record: Callable[[Sequence[object]], None]
) -> None:
    graph = graphs.capture([batch], record)
    graph.replay([batch])
    regrouped = replace(batch, query_start=torch.tensor([0, 2, 2]).int())
    with pytest.raises(ContractError, match=r"query_start = \[0, 2, 2\]: .*recorded, \[0, 1, 2\]"):
        graph.replay([regrouped])
    branching = replace(batch, parents=torch.tensor([-1, -1]).int())
    for call in (graph.replay, lambda batches: graphs.capture(batches, record)):
        with pytest.raises(ContractError, match=r"parents = .*None in a recorded step"):
            call([branching])
    too_long = replace(batch, context_len=torch.tensor([90, 1]).int())
    for call in (graph.replay, lambda batches: graphs.capture(batches, record)):
        with pytest.raises(ContractError, match=r"page_table = .*sequence 0 has 90 tokens"):
            call([too_long])


def test_where_steps_are_ragged_a_batch_needs_only_as_many_tokens() -> None:
    device = Checked(registry.load("cpu").open(), layers=False)
    graphs = device.extension(GraphCapture)  # type: ignore[type-abstract]
    assert graphs is not None
    with PagedKV(device, LAYOUT, 12) as pages:
        tables = [pages.take(9), pages.take(1)]
        graph = graphs.capture([pages.batch(tables, [9, 1], [1, 1])], lambda plans: None)
        graph.replay([pages.batch(tables, [9, 1], [2, 0])])
        for other in ([3, 1], [1, 0]):
            with pytest.raises(ContractError, match=r"query_start = .*of tokens, 2"):
                graph.replay([pages.batch(tables, [9, 1], other)])
    device.close()


def test_another_span_is_refused(
    device: Device,
    graphs: GraphCapture,
    batch: AttentionBatch,
    record: Callable[[Sequence[object]], None],
) -> None:
    graph = graphs.capture([batch], record)
    with PagedKV(device, LAYOUT, 12) as others:
        other = others.batch([others.take(9), others.take(1)], [9, 1], [1, 1])
        with pytest.raises(ContractError, match=r"kv = .*must be that of the recorded batch"):
            graph.replay([other])


def test_the_batches_of_a_step_are_the_same_sequences_and_as_many_as_recorded(
    device: Device,
    graphs: GraphCapture,
    batch: AttentionBatch,
    record: Callable[[Sequence[object]], None],
) -> None:
    with PagedKV(device, LAYOUT, 12) as others:
        other = others.batch([others.take(9), others.take(1)], [9, 1], [1, 1])
        graph = graphs.capture([batch, other], record)
        graph.replay([batch, other])
        with pytest.raises(ContractError, match=r"batches = 1: must be as many as .* 2"):
            graph.replay([batch])
        with pytest.raises(ContractError, match=r"kv = .*that of the recorded batch"):
            graph.replay([other, batch])
        shorter = replace(other, context_len=torch.tensor([8, 1]).int())
        for call in (graph.replay, lambda batches: graphs.capture(batches, record)):
            with pytest.raises(ContractError, match=r"batches\[1\]\.context_len = .*first batch"):
                call([batch, shorter])
    with pytest.raises(ContractError, match="a step has at least one"):
        graphs.capture([], record)


def test_a_size_that_is_too_small_is_the_devices_fault() -> None:
    class Liar(WrappedGraphs):
        def size(self, tokens: int) -> int:
            return tokens - 1

    class Lying(Wrapper):
        def extension(self, kind: type) -> Any:
            found = super().extension(kind)
            return Liar(self, found.inner) if isinstance(found, WrappedGraphs) else found

    device = Checked(Lying(registry.load("cpu").open()))
    graphs = device.extension(GraphCapture)  # type: ignore[type-abstract]
    assert graphs is not None
    with pytest.raises(ContractError, match=r"graphs.size\(3\) = 2: is neither 0 nor enough"):
        graphs.size(3)
    device.close()
    with pytest.raises(ContractError, match="close"):
        graphs.size(1)


@pytest.mark.parametrize(
    ("size", "right"), [(0, True), (8, True), (9, True), (7, False), (8.0, False), (None, False)]
)
def test_a_size_of_a_recorded_step_is_none_or_enough(size: object, right: bool) -> None:
    class Sized(Wrapper):
        def around(self, name: str, call: Any, *args: Any, **kwargs: Any) -> Any:
            return size if name == "graphs.size" else call(*args, **kwargs)

    device = Checked(Sized(registry.load("cpu").open()))
    graphs = device.extension(GraphCapture)  # type: ignore[type-abstract]
    assert graphs is not None
    if right:
        assert graphs.size(8) == size
    else:
        with pytest.raises(ContractError, match=r"graphs.size\(8\) = .*is neither 0 nor enough"):
            graphs.size(8)
    device.close()
