"""What a runtime may take: what it was told, weights included, or a share of what is free."""

import pytest

from kvrt.engine.sizing import FREE_SHARE
from kvrt.errors import CapacityError
from kvrt.model.weights import arena
from kvrt.units import format_bytes

from .conftest import Break, MakeRuntime
from .test_step_memory import Small

CHUNK = 2 << 20


def test_a_memory_limit_is_for_weights_and_cache_together(make_runtime: MakeRuntime) -> None:
    weights = make_runtime().model.weight_bytes
    for chunks in (2, 5):
        limit = weights + chunks * CHUNK
        assert make_runtime(memory_limit=limit).stats().cache.limit_bytes == chunks * CHUNK
    runtime = make_runtime()
    runtime.set_memory_limit(weights + 3 * CHUNK)
    assert runtime.stats().cache.limit_bytes == 3 * CHUNK


def test_without_a_limit_the_cache_takes_a_share_of_what_is_free(
    make_runtime: MakeRuntime, break_device: Break
) -> None:
    free = 256 << 20
    break_device(lambda device: Small(device, free))
    runtime = make_runtime(memory_limit=None, max_batch_tokens=64)
    held = runtime.stats().cache.limit_bytes
    assert free * FREE_SHARE - CHUNK < held <= free * FREE_SHARE


def test_a_limit_that_cannot_hold_the_weights_is_refused_before_they_are_loaded(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither once nor often does that take memory."""
    weights = make_runtime().model.weight_bytes
    taken: list[int] = []
    monkeypatch.setattr(arena, "allocate", lambda size, device: taken.append(size))
    for limit in (1000, weights - 1, weights + CHUNK - 1):
        with pytest.raises(CapacityError, match="the weights take") as caught:
            make_runtime(memory_limit=limit)
        assert caught.value.needed == weights + CHUNK
        parts = [format_bytes(each) for each in (limit, weights, CHUNK)]
        told = "a memory limit of {} is too small: the weights take {}, and the smallest KV cache"
        assert str(caught.value) == f"{told} {{}} more".format(*parts)
        assert caught.value.fix == f"give at least {format_bytes(weights + CHUNK)}"
    assert not taken
