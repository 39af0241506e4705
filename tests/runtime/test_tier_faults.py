"""Devices that fail while KV pages leave them and come back."""

import time
from pathlib import Path

import pytest

from kvrt.errors import DeviceError, OutOfMemory
from kvrt.runtime import Runtime
from kvrt.spi import Device
from kvrt.testing.chaos import Chaos

from .conftest import Break, MakeRuntime, until
from .faulty import Faulty
from .test_offload import CHUNK, GREEDY, LONG, PAGE, STEMS, offloaded, prompts, squeezed, tokens

COUNT = 24
TIERS = ("host:64MiB", "disk:{}:256MiB")

NO_MORE = OutOfMemory("no more")


@pytest.fixture(scope="module")
def right(tiny_lm: Path) -> list[tuple[int, ...]]:
    with Runtime(tiny_lm, backend="cpu", load_format="dummy", seed=1, prefix_cache=False) as cold:
        return tokens(cold.generate(prompts(COUNT, 1), LONG))


@pytest.fixture
def device(break_device: Break) -> list[Faulty]:
    """The devices of the runtimes that are made, in this order."""
    made: list[Faulty] = []

    def wrap(inner: Device) -> Faulty:
        made.append(Faulty(Chaos(inner, seed=7)))
        return made[-1]

    break_device(wrap)
    return made


def allow(runtime: Runtime, chunks: int) -> None:
    runtime.set_memory_limit(runtime.model.weight_bytes + chunks * CHUNK)


def check_that_nothing_leaks(runtime: Runtime) -> None:
    until(lambda: not runtime.busy and offloaded(runtime).host.pinned == 0)
    cache = runtime.stats().cache
    assert cache.used_pages == 0
    held = cache.mapped_bytes + cache.pooled_bytes
    assert held == runtime.device.memory.info().chunks
    assert held <= cache.limit_bytes
    runtime.cache.check_integrity()
    assert runtime.invalidate() > 0
    assert runtime.stats().cache.cached_pages == offloaded(runtime).host.pages == 0


# --- no memory -------------------------------------------------------------------------------


@pytest.mark.promise("P3")
@pytest.mark.parametrize("method", ["memory.create", "memory.map"])
@pytest.mark.parametrize("tiers", TIERS)
def test_a_device_without_memory_for_pages_that_are_to_come_back_takes_them_from_others(
    tiers: str, method: str, make_runtime: MakeRuntime, device: list[Faulty], tmp_path: Path
) -> None:
    """The limit promised more than there is, which shows when the request is admitted."""
    runtime = squeezed(make_runtime, tiers.format(tmp_path), preemption="move")
    right = tokens(runtime.generate([STEMS[0]], GREEDY))
    for stem in (*STEMS[1:], *([n] * 150 for n in range(4))):
        runtime.generate([stem], GREEDY)
    until(lambda: not runtime.busy)
    held = runtime.stats().cache.limit_bytes
    fetched = offloaded(runtime).fetched_pages
    allow(runtime, 8)
    device[0].refused[method] = NO_MORE
    result = runtime.stream(STEMS[0], GREEDY).wait()
    assert 1 <= device[0].failed[method] <= 2, "the engine makes do with what is held"
    assert [result.token_ids] == right
    assert result.usage.cached_tokens == 9 * PAGE
    assert offloaded(runtime).fetched_pages == fetched + 9
    assert runtime.stats().cache.peak_mapped_bytes == held
    check_that_nothing_leaks(runtime)
    device[0].refused.clear()
    assert tokens(runtime.generate([STEMS[0]], GREEDY)) == right


@pytest.mark.promise("P3")
@pytest.mark.parametrize("tiers", TIERS)
def test_under_load_a_device_whose_memory_comes_and_goes_changes_no_answer(
    tiers: str,
    make_runtime: MakeRuntime,
    right: list[tuple[int, ...]],
    device: list[Faulty],
    tmp_path: Path,
) -> None:
    runtime = squeezed(make_runtime, tiers.format(tmp_path), preemption="move")
    until(lambda: runtime.cache.held_bytes == 4 * CHUNK)  # what is kept warm
    for start in range(0, COUNT, 4):
        allow(runtime, 8)
        device[0].refused["memory.create"] = NO_MORE
        asked = prompts(COUNT, 1)[start : start + 4]
        assert tokens(runtime.generate(asked, LONG)) == right[start : start + 4]
        device[0].refused.clear()
        allow(runtime, 4)
    assert device[0].failed["memory.create"] > 3
    assert offloaded(runtime).fetched_pages > 0
    check_that_nothing_leaks(runtime)


# --- copies that fail ------------------------------------------------------------------------


def break_copies(device: Faulty, method: str, when: str) -> DeviceError:
    """From here on, copies fail when they are submitted, or when they should have ended."""
    error = DeviceError("the device fell off the bus", call="copy", code="EIO")
    (device.refused if when == "refused" else device.failing)[method] = error
    return error


@pytest.mark.parametrize("when", ["refused", "failing"])
@pytest.mark.parametrize("method", ["copier.to_host", "copier.to_device"])
@pytest.mark.parametrize("tiers", TIERS)
def test_a_copy_that_fails_ends_every_request_with_its_error(
    tiers: str,
    method: str,
    when: str,
    make_runtime: MakeRuntime,
    right: list[tuple[int, ...]],
    device: list[Faulty],
    tmp_path: Path,
) -> None:
    """Nobody can tell what else a device does wrong that failed once. No token comes after it."""
    runtime = squeezed(make_runtime, tiers.format(tmp_path), preemption="move")
    assert tokens(runtime.generate(prompts(COUNT, 1)[:12], LONG)) == right[:12]
    assert offloaded(runtime).saved_pages > 0
    broken = break_copies(device[0], method, when)
    asked = [*range(12, COUNT), *range(12)]
    results = runtime.generate([prompts(COUNT, 1)[n] for n in asked], LONG)
    for n, result in zip(asked, results, strict=True):
        if result.error is None:
            assert result.token_ids == right[n]
        else:
            assert result.error is broken
            assert all(c.token_ids == right[n][: len(c.token_ids)] for c in result.completions)
    assert results[-1].error is broken
    for call in (lambda: runtime.stream([1]), runtime.invalidate, lambda: runtime.pin([1])):
        with pytest.raises(DeviceError, match="fell off the bus"):
            call()
    begun = time.monotonic()
    runtime.close()
    assert time.monotonic() - begun < 5
    assert device[0].left == 0, "all of its memory is given back"


@pytest.mark.parametrize("when", ["refused", "failing"])
def test_a_copy_that_fails_while_nothing_runs_is_what_the_next_caller_gets(
    when: str, make_runtime: MakeRuntime, device: list[Faulty]
) -> None:
    runtime = make_runtime(offload="host:64MiB", preemption="move", prefix_cache_ttl=0.2)
    broken = break_copies(device[0], "copier.to_host", when)
    assert runtime.stream(STEMS[0], GREEDY).wait().error is None
    until(lambda: device[0].failed.total() > 0)
    error: Exception | None
    try:
        error = runtime.stream(STEMS[0], GREEDY).wait().error
    except DeviceError as refused:
        error = refused
    assert error is broken
    runtime.close()
    assert device[0].left == 0


@pytest.mark.parametrize("when", ["refused", "failing"])
def test_a_copy_that_fails_for_a_snapshot_is_its_callers_business(
    when: str, make_runtime: MakeRuntime, device: list[Faulty], tmp_path: Path
) -> None:
    runtime = make_runtime()
    right = runtime.stream(STEMS[0], GREEDY).wait().token_ids
    break_copies(device[0], "copier.to_host", when)
    with pytest.raises(DeviceError, match="fell off the bus"):
        runtime.save_cache(tmp_path)
    result = runtime.stream(STEMS[0], GREEDY).wait()
    assert (result.token_ids, result.usage.cached_tokens) == (right, 9 * PAGE)
    device[0].refused.clear()
    device[0].failing.clear()
    assert runtime.save_cache(tmp_path) == 9, "nothing was written of what could not be read"
