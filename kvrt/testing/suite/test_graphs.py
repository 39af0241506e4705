"""Recording of a decode step: nothing is computed until it is replayed, and then for any batch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kvrt.spi import Capability, DenseOps, Device, DType, GraphCapture
from kvrt.testing import reference
from kvrt.testing.paged import Case, PagedKV, fill_past, mismatch, randoms
from kvrt.wrappers.rules import TORCH_DTYPE

STEPS = ((1, 37, 130), (64, 65, 2), (17, 700, 16))
"""The contexts of three steps of the same three sequences' places."""


@pytest.fixture
def graphs(device: Device) -> GraphCapture:
    found = device.extension(GraphCapture)  # type: ignore[type-abstract]
    if found is None:
        pytest.skip("the device does not offer GraphCapture")
    return found


class Step:
    """Two layers of attention, and what goes in and comes out, in tensors that stay."""

    def __init__(self, device: Device, case: Case, tokens: int) -> None:
        shape = (tokens, case.heads + 2 * case.kv_heads, case.head_dim)
        dtype, place = TORCH_DTYPE[case.compute], device.info.torch_device
        self._device, self._case = device, case
        self._qkv = torch.empty(shape, dtype=dtype, device=place)
        heads = (case.heads, case.kv_heads, case.kv_heads)
        self.q, self.k, self.v = self._qkv.split_with_sizes(heads, 1)
        self.out = [torch.full_like(self.q, math.nan) for _ in range(case.layers)]

    def fill(self, seed: int) -> None:
        values = randoms(self._device, self._case.compute, *self._qkv.shape, seed=seed)
        self._qkv.copy_(values)

    def record(self, plans: Sequence[object]) -> None:
        (plan,) = plans
        for layer, out in enumerate(self.out):
            self._device.attention.append(plan, layer, self.k, self.v)
            self._device.attention.run(plan, layer, self.q, out, self._case.params)


@pytest.fixture
def case(compute: DType, kv: DType) -> Case:
    return Case(contexts=STEPS[0], queries=(1, 1, 1), compute=compute, kv=kv)


@pytest.fixture
def pages(device: Device, case: Case) -> Iterator[PagedKV]:
    count = sum(math.ceil(length / case.page_size) for step in STEPS for length in step)
    with PagedKV(device, case.layout, count) as pages:
        yield pages


def test_a_replay_serves_each_batch_of_its_size(
    device: Device, graphs: GraphCapture, case: Case, pages: PagedKV
) -> None:
    step = Step(device, case, 3)
    graph = None
    for number, contexts in enumerate(STEPS):
        tables = [pages.take(length) for length in contexts]
        batch = pages.batch(tables, contexts, case.queries)
        fill_past(batch, seed=number)
        step.fill(number)
        if graph is None:
            graph = graphs.capture([batch], step.record)
            device.synchronize()
            assert all(out.isnan().all() for out in step.out), "computed while recording"
        graph.replay([batch])
        device.synchronize()
        for layer, out in enumerate(step.out):
            reference.append(batch, layer, step.k, step.v)
            want = reference.attention(batch, layer, step.q, case.params)
            assert not mismatch(out, want, case.tolerance), f"step {number}, layer {layer}"


def test_a_step_may_have_several_batches(
    device: Device, graphs: GraphCapture, case: Case, pages: PagedKV
) -> None:
    """Of layers whose pages lie elsewhere, in another layout; each call reads its own batch's."""
    narrow = replace(case, kv_heads=1, layers=1, page_size=7)
    first, second = Step(device, case, 3), Step(device, narrow, 3)

    def record(plans: Sequence[object]) -> None:
        first.record(plans[:1])
        second.record(plans[1:])
        first.record(plans[:1])

    graph = None
    count = sum(math.ceil(length / 7) for step in STEPS for length in step)
    with PagedKV(device, narrow.layout, count) as elsewhere:
        for number, contexts in enumerate(STEPS):
            batches = [
                kept.batch([kept.take(length) for length in contexts], contexts, case.queries)
                for kept in (pages, elsewhere)
            ]
            for seed, (batch, step) in enumerate(zip(batches, (first, second), strict=True)):
                fill_past(batch, seed=number + 10 * seed)
                step.fill(number + 10 * seed)
            if graph is None:
                graph = graphs.capture(batches, record)
            graph.replay(batches)
            device.synchronize()
            for batch, step in zip(batches, (first, second), strict=True):
                for layer, out in enumerate(step.out):
                    reference.append(batch, layer, step.k, step.v)
                    want = reference.attention(batch, layer, step.q, case.params)
                    assert not mismatch(out, want, case.tolerance), f"step {number}, {layer}"


@pytest.mark.parametrize("queries", [(1, 1, 1), (3,), (0, 2, 1), (2, 1)])
@pytest.mark.parametrize("branches", [False, True])
def test_a_ragged_replay_serves_batches_that_group_their_tokens_anew(
    device: Device,
    graphs: GraphCapture,
    case: Case,
    pages: PagedKV,
    queries: tuple[int, ...],
    branches: bool,
) -> None:
    declared = device.info.capabilities
    needed = {Capability.RAGGED_GRAPHS} | ({Capability.TREES} if branches else set())
    if not needed <= declared:
        pytest.skip(f"the device does not declare {needed - declared}")
    step = Step(device, case, 3)
    first = pages.batch([pages.take(length) for length in STEPS[0]], STEPS[0], case.queries)
    graph = graphs.capture([first], step.record)
    contexts = STEPS[1][: len(queries)]
    batch = pages.batch([pages.take(length) for length in contexts], contexts, queries)
    if branches:
        batch = replace(batch, parents=torch.full((3,), -1, dtype=torch.int32))
    fill_past(batch)
    step.fill(1)
    graph.replay([batch])
    device.synchronize()
    for layer, out in enumerate(step.out):
        reference.append(batch, layer, step.k, step.v)
        want = reference.attention(batch, layer, step.q, case.params)
        assert not mismatch(out, want, case.tolerance), f"layer {layer}"


def test_a_replay_makes_dense_calls_in_their_order(
    device: Device, graphs: GraphCapture, case: Case, pages: PagedKV
) -> None:
    """Each result is the next call's input, and the first input is another in each replay."""
    ops = device.extension(DenseOps)  # type: ignore[type-abstract]
    if ops is None:
        pytest.skip("the device does not offer DenseOps")
    width = 96
    weight = randoms(device, device.info.weight_dtypes[0], 2 * width, width, seed=1) / math.sqrt(
        width
    )
    norm = randoms(device, "float32", width, seed=2)
    bias = randoms(device, "float32", width, seed=3)
    x = randoms(device, case.compute, 3, width, seed=4)
    normed, gated, out = (torch.full_like(x, math.nan) for _ in range(3))

    def record(plans: Sequence[object]) -> None:
        ops.rms_norm(x, norm, 1e-5, normed)
        ops.gated_linear(normed, weight, "silu", None, gated)
        ops.linear(gated, weight[:width], bias, x, out)

    tables = [pages.take(length) for length in case.contexts]
    batch = pages.batch(tables, case.contexts, case.queries)
    graph = graphs.capture([batch], record)
    for seed in (5, 6):
        x.copy_(randoms(device, case.compute, 3, width, seed=seed))
        graph.replay([batch])
        device.synchronize()
        wants: list[tuple[Tensor, Tensor]] = [
            (normed, reference.rms_norm(x, norm, 1e-5)),
            (gated, reference.gated_linear(normed, weight, "silu", None)),
            (out, reference.linear(gated, weight[:width], bias, x)),
        ]
        for got, want in wants:
            assert not mismatch(got, want, case.tolerance)


def test_a_device_computes_as_before_after_recording(
    device: Device, graphs: GraphCapture, case: Case, pages: PagedKV
) -> None:
    step = Step(device, case, 3)
    tables = [pages.take(length) for length in case.contexts]
    batch = pages.batch(tables, case.contexts, case.queries)
    fill_past(batch)
    step.fill(1)

    def fails(plans: Sequence[object]) -> None:
        step.record(plans)
        raise KeyError("the caller's own")

    with pytest.raises(KeyError, match="own"):
        graphs.capture([batch], fails)
    step.record([device.attention.plan(replace(batch))])
    device.synchronize()
    for layer, out in enumerate(step.out):
        want = reference.attention(batch, layer, step.q, case.params)
        assert not mismatch(out, want, case.tolerance), f"layer {layer}"


def test_a_step_is_recorded_with_its_size_or_more_or_not_at_all(graphs: GraphCapture) -> None:
    for tokens in range(1, 70):
        size = graphs.size(tokens)
        assert size == 0 or size >= tokens
        assert size == graphs.size(tokens)
        if size:
            assert graphs.size(size) == size, "padding is itself a recorded size"
