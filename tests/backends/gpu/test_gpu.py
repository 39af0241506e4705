"""What both GPU backends share: tensors over addresses, recorded steps, limits, and torch."""

import contextlib
import ctypes
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from kvrt_cuda import TORCH as CUDA_TORCH
from kvrt_kernels import dlpack
from kvrt_kernels.gpu import TorchLimits, torch_builds
from kvrt_kernels.graphs import DeviceGraphs
from kvrt_rocm import TORCH as ROCM_TORCH

from kvrt.errors import BackendUnavailable
from kvrt.testing.host import physical_bytes

# --- tensors over addresses ----------------------------------------------------------------------


def test_a_tensor_shares_the_memory_at_its_address() -> None:
    memory = (ctypes.c_uint8 * 64)(*range(64))
    tensor = dlpack.bytes_at(ctypes.addressof(memory), 64, dlpack.CPU, 0)
    assert tensor.tolist() == list(range(64))
    tensor[3] = 200
    assert memory[3] == 200
    assert tensor.view(torch.float32).shape == (16,)


def test_wrapping_many_times_leaks_nothing() -> None:
    memory = (ctypes.c_uint8 * 64)()
    address = ctypes.addressof(memory)
    for _ in range(1000):
        dlpack.bytes_at(address, 64, dlpack.CPU, 0)
    before = physical_bytes()
    for _ in range(30_000):
        dlpack.bytes_at(address, 64, dlpack.CPU, 0)
    assert physical_bytes() - before < 1 << 20, "a description has about 90 bytes"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this torch has a GPU")
def test_a_device_that_torch_does_not_have_is_an_error_and_no_crash() -> None:
    with pytest.raises((RuntimeError, BufferError, AssertionError, SystemError)):
        dlpack.bytes_at(1 << 40, 64, dlpack.CUDA, 0)


# --- torch ---------------------------------------------------------------------------------------


def test_what_torch_was_built_for_is_read_without_importing_it() -> None:
    builds = torch_builds()
    assert builds is not None
    assert builds["cuda"] == (torch.version.cuda or "")
    assert builds["hip"] == (torch.version.hip or "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this torch has a GPU")
@pytest.mark.parametrize("place", [CUDA_TORCH, ROCM_TORCH])
def test_a_torch_that_cannot_use_the_device_is_quoted(place: Any) -> None:
    with pytest.raises(BackendUnavailable, match=f"cannot use {place.platform} device 0") as raised:
        place.enter(0)
    assert f"reinstall torch's {place.platform} build" in raised.value.fix


def test_limits_are_measured_with_the_device_awaited() -> None:
    waits: list[None] = []
    limits = TorchLimits("cpu", lambda: waits.append(None), nbytes=1 << 22, side=128).measure()
    assert limits.read_bytes_per_s > 1e8
    assert limits.flops_per_s > 1e6
    assert len(waits) >= 20


def test_a_copy_counts_each_byte_twice_and_a_product_each_of_its_two_operations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a clock that every copy and every product takes half a second."""
    now = itertools.count(0.0, 0.5)
    monkeypatch.setattr("kvrt_kernels.gpu.time.perf_counter", lambda: next(now))
    limits = TorchLimits("cpu", lambda: None, nbytes=1 << 20, side=16).measure()
    assert (limits.read_bytes_per_s, limits.flops_per_s) == (2 * (1 << 20) / 0.5, 2 * 16**3 / 0.5)


def test_what_is_measured_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    made, real = [], torch.empty_like

    def empty_like(tensor: torch.Tensor) -> torch.Tensor:
        made.append(real(tensor).zero_())
        return made[-1]

    monkeypatch.setattr(torch, "empty_like", empty_like)
    TorchLimits("cpu", lambda: None, nbytes=1 << 20, side=16).measure()
    copied, product = made
    assert (copied.shape, product.shape) == ((1 << 20,), (16, 16))
    assert (copied == 1).all()
    assert (product == 16).all()


# --- recorded steps ------------------------------------------------------------------------------


class Attention:
    """A stand-in for `TritonAttention` that tells what is asked of it."""

    def __init__(self, told: list[object]) -> None:
        self._told = told

    def plan_recorded(self, batch: object) -> object:
        self._told.append(("plan", batch))
        return "the plan"

    def update(self, plan: object, batch: object) -> None:
        self._told.append(("update", plan, batch))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is asked of torch's graphs, which are not there without a GPU."""
    told: list[object] = []

    class Recorded:
        def replay(self) -> None:
            told.append("replay")

    @contextlib.contextmanager
    def graph(recorded: Recorded, *, pool: str, stream: str, **_: object) -> Iterator[None]:
        told.append(f"begin in {pool} on {stream}")
        yield
        told.append("end")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    pools, streams = itertools.count(1), itertools.count(1)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"stream {next(streams)}")
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: f"pool {next(pools)}")
    return told


def test_a_step_is_recorded_once_and_replayed_for_the_batch_it_is_given(
    told: list[object],
) -> None:
    attention: Any = Attention(told)
    graphs = DeviceGraphs(attention, "cuda:0")
    batches: list[Any] = ["batch 0", "batch 1"]
    graph = graphs.capture(batches[:1], lambda plans: told.append(("record", *plans)))
    assert told == [
        ("plan", "batch 0"), "begin in pool 1 on stream 1", ("record", "the plan"), "end",
    ]  # fmt: skip
    told.clear()
    for batch in batches:
        graph.replay([batch])
    assert told == [
        ("update", "the plan", "batch 0"), "replay",
        ("update", "the plan", "batch 1"), "replay",
    ]  # fmt: skip


def test_graphs_of_a_device_share_one_stream_and_one_pool_and_those_of_another_have_their_own(
    told: list[object],
) -> None:
    attention: Any = Attention([])
    one, other = (DeviceGraphs(attention, "cuda:0") for _ in range(2))
    batch: Any = "batch"

    def begin(graphs: DeviceGraphs) -> tuple[object, object]:
        told.clear()
        return graphs.capture([batch], lambda plans: None), told[0]

    kept = [begin(one) for _ in range(3)]
    assert [where for _, where in kept] == ["begin in pool 1 on stream 1"] * 3
    assert begin(other)[1] == "begin in pool 2 on stream 2"
    kept.clear()
    assert begin(one)[1] == "begin in pool 3 on stream 1", "a pool goes with its last graph"


def test_steps_are_padded_little_and_large_ones_are_not_recorded() -> None:
    attention: Any = Attention([])
    graphs = DeviceGraphs(attention, "cuda:0")
    sizes = [graphs.size(tokens) for tokens in range(1, 257)]
    assert all(tokens <= size < 2 * tokens for tokens, size in enumerate(sizes, 1))
    assert all(size <= 1.34 * tokens for tokens, size in enumerate(sizes, 1) if tokens >= 48)
    assert all(graphs.size(size) == size for size in sizes)
    assert len(set(sizes)) <= 20
    assert graphs.size(257) == 0
