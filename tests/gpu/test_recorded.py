"""Recorded steps and memory that runs short: what only a device's own driver and allocator show."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from tests.gpu.conftest import MakeRuntime
from tests.gpu.test_memory import settled

pytestmark = pytest.mark.extra

SIZES = range(1, 33)
"""Sequences at once. A device that pads records fewer sizes, one that does not each of them."""

SHORT = SamplingParams(max_tokens=4, ignore_eos=True)
LONG = SamplingParams(max_tokens=200, ignore_eos=True)
WORKSPACE = 32 << 20
"""Bytes of the workspace that cuBLAS keeps for each stream, on Hopper."""


def prompts(count: int) -> list[list[int]]:
    return [[(7 * n + i) % 199 for i in range(20)] for n in range(count)]


def said(runtime: Runtime, count: int, params: SamplingParams) -> list[tuple[int, ...]]:
    results = runtime.generate(prompts(count), params)
    assert [result.error for result in results] == [None] * count
    return [result.token_ids for result in results]


def record_all(runtime: Runtime) -> None:
    for count in SIZES:
        said(runtime, count, SHORT)


@pytest.fixture
def make(backend: str, folder_of: Callable[[str], Path], make_runtime: MakeRuntime) -> MakeRuntime:
    def make(**options: object) -> Runtime:
        return make_runtime(folder_of("llama-3"), backend=backend, dtype="float32", **options)

    return make


def test_recorded_steps_of_all_sizes_take_the_memory_of_one(make: MakeRuntime) -> None:
    runtime = make()
    if not runtime.device_info.torch_device.startswith("cuda"):
        pytest.skip("torch counts no memory of this device")
    said(runtime, SIZES[-1], SHORT)  # the largest
    before = torch.cuda.memory_reserved()
    record_all(runtime)
    assert torch.cuda.memory_reserved() - before < WORKSPACE


def test_a_runtime_that_is_closed_takes_nothing_from_anothers_recorded_steps(
    make: MakeRuntime,
) -> None:
    kept, other = make(), make()
    record_all(kept)
    record_all(other)
    before = said(kept, 5, LONG)
    other.close()
    assert said(kept, 5, LONG) == before


def test_a_recorded_step_finds_pages_that_left_the_device_and_came_elsewhere(
    make: MakeRuntime,
) -> None:
    runtime = make(keep_warm=2 << 20, prefix_cache_ttl=0.0)  # a chunk: of the null page
    before = said(runtime, 5, LONG)
    settled(runtime)
    said(runtime, 17, SHORT)  # takes chunks in another order
    settled(runtime)
    assert said(runtime, 5, LONG) == before


@pytest.fixture
def little_left(make: MakeRuntime) -> Iterator[Callable[[Runtime, int], None]]:
    """Takes all of the device's memory but so many bytes."""
    taken: list[torch.Tensor] = []

    def take(runtime: Runtime, left: int) -> None:
        device = runtime.device_info.torch_device
        while (free := runtime.device.memory.info().free) > left + (64 << 20):
            size = min(free - left, 1 << 30)
            taken.append(torch.empty(size, dtype=torch.uint8, device=device))

    yield take
    taken.clear()


def test_prompts_are_answered_where_little_memory_is_left_to_compute_in(
    make: MakeRuntime, little_left: Callable[[Runtime, int], None]
) -> None:
    """Activations and pages compete for what is left, and torch keeps what it had."""
    runtime = make(memory_limit="90%", max_batch_tokens=8192, prefix_cache_ttl=0.0)
    if not runtime.device_info.torch_device.startswith("cuda"):
        pytest.skip("the host's memory is not to be filled")
    torch.empty(3 << 29, dtype=torch.uint8, device=runtime.device_info.torch_device)  # kept
    little_left(runtime, 512 << 20)
    begin = time.monotonic()
    results = runtime.generate([[n % 199] * 240 for n in range(1, 250)], SHORT)
    failed = [result for result in results if result.finish_reason not in ("length", "capacity")]
    assert not failed, failed[0].error
    assert any(result.error is None for result in results)
    assert said(runtime, 3, SHORT)
    assert time.monotonic() - begin < 60
