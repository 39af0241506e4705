"""What users keep of what was computed, and forget."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from kvrt.errors import (
    ConfigError,
    DeviceError,
    IntegrityError,
    StoreError,
)
from kvrt.kv.tiers.names import chain
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

from .conftest import MakeRuntime, until

PAGE, CHUNK = 16, 2 << 20
GREEDY = SamplingParams(max_tokens=6, ignore_eos=True)
rng = random.Random(11)
PROMPT = [rng.randrange(199) for _ in range(10 * PAGE + 3)]


def cached(runtime: Runtime, prompt: list[int], **options: str) -> int:
    result = runtime.stream(prompt, GREEDY, **options).wait()  # type: ignore[arg-type]
    assert result.error is None
    return result.usage.cached_tokens


def fill(runtime: Runtime, seed: int = 0) -> None:
    """More different prompts than the cache has room for."""
    for n in range(10):
        cached(runtime, [seed, n] * 100)


# --- pins and forgetting ---------------------------------------------------------------------


def test_what_is_pinned_stays_whatever_else_needs_memory(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    runtime.set_memory_limit(runtime.model.weight_bytes + 4 * CHUNK)
    assert runtime.pin(PROMPT) == 0, "nothing is cached of it yet"
    cached(runtime, PROMPT)
    assert runtime.pin(PROMPT) == runtime.pin(PROMPT) == 10 * PAGE
    fill(runtime)
    assert cached(runtime, PROMPT) == 10 * PAGE
    assert runtime.unpin(PROMPT) == 1
    assert runtime.unpin(PROMPT) == 0
    fill(runtime, seed=5)
    assert cached(runtime, PROMPT) == 0
    assert runtime.stats().cache.used_pages == 0


def test_what_is_pinned_stays_when_what_is_only_cached_is_long_unused(
    make_runtime: MakeRuntime,
) -> None:
    runtime = make_runtime(prefix_cache_ttl=0.3)
    until(lambda: cached(runtime, PROMPT) + runtime.pin(PROMPT) >= 10 * PAGE)
    cached(runtime, [7] * 40)
    until(lambda: runtime.stats().cache.cached_pages == 0)
    assert cached(runtime, PROMPT) == 10 * PAGE
    runtime.unpin(PROMPT)
    until(lambda: runtime.stats().cache.cached_pages == 0)
    assert cached(runtime, PROMPT) == 0


def test_a_pin_ends_when_its_pages_are_forgotten_and_can_be_made_anew(
    make_runtime: MakeRuntime,
) -> None:
    runtime = make_runtime()
    runtime.set_memory_limit(runtime.model.weight_bytes + 4 * CHUNK)
    cached(runtime, PROMPT)
    runtime.pin(PROMPT)
    runtime.invalidate(PROMPT[: 5 * PAGE])
    assert runtime.stats().cache.used_pages == 0
    assert runtime.unpin(PROMPT) == 0
    assert cached(runtime, PROMPT) == 4 * PAGE
    assert runtime.pin(PROMPT) == 10 * PAGE
    fill(runtime)
    assert cached(runtime, PROMPT) == 10 * PAGE


@pytest.mark.parametrize("offload", [None, "host:16MiB", "disk:{}:16MiB"])
def test_what_is_forgotten_is_computed_anew(
    offload: str | None, make_runtime: MakeRuntime, tmp_path: Path
) -> None:
    tiers = {} if offload is None else {"offload": offload.format(tmp_path)}
    runtime = make_runtime(**tiers, offload_write="through")
    other = [*PROMPT[: 4 * PAGE], *[1] * 40]
    for prompt in (PROMPT, other):
        cached(runtime, prompt)
        cached(runtime, prompt, cache_salt="tenant")
    assert runtime.invalidate(PROMPT[: 5 * PAGE]) == 6, "pages 5 to 10"
    assert cached(runtime, other) == 6 * PAGE
    assert cached(runtime, PROMPT) == 4 * PAGE
    assert runtime.invalidate(cache_salt="tenant") == 12
    assert cached(runtime, other, cache_salt="tenant") == 0
    assert cached(runtime, PROMPT) == 10 * PAGE
    assert runtime.invalidate() == 18
    assert cached(runtime, PROMPT) == 0


@pytest.mark.parametrize(("forgotten", "lost"), [((), 0), (PROMPT[: 4 * PAGE], 5)])
def test_pages_on_disk_are_forgotten_also_when_one_before_them_is_lost(
    forgotten: list[int], lost: int, make_runtime: MakeRuntime, tmp_path: Path
) -> None:
    def restarted() -> Runtime:
        return make_runtime(
            offload=f"disk:{tmp_path}:16MiB", offload_write="through", preemption="move"
        )

    first = restarted()
    for salt in ("", "tenant"):
        cached(first, PROMPT, cache_salt=salt)
    root = first._root("tenant")
    first.close()
    runtime = restarted()
    offload = runtime._worker.engine.memory.offload
    assert offload is not None
    gone = list(chain(root, PROMPT, PAGE))[lost]
    offload.remove([gone])
    assert runtime.invalidate(forgotten or None, cache_salt="tenant") == (6 if lost else 9)
    cached(runtime, PROMPT[: (lost + 1) * PAGE + 1], cache_salt="tenant")
    assert cached(runtime, PROMPT, cache_salt="tenant") == (lost + 1) * PAGE
    assert cached(runtime, PROMPT) == 10 * PAGE, "of others, nothing is forgotten"


def test_a_request_that_runs_keeps_its_pages_when_they_are_forgotten(
    make_runtime: MakeRuntime,
) -> None:
    runtime = make_runtime()
    params = SamplingParams(max_tokens=100, ignore_eos=True)
    right = runtime.stream(PROMPT, params).wait().token_ids
    stream = runtime.stream(PROMPT, params)
    next(iter(stream))
    assert runtime.invalidate() > 0
    assert stream.wait().token_ids == right


def test_what_comes_after_forgotten_pages_is_not_kept_either(make_runtime: MakeRuntime) -> None:
    """Nobody could find it: a page is found through those before it."""
    runtime = make_runtime()
    stream = runtime.stream(PROMPT[:20], SamplingParams(max_tokens=400, ignore_eos=True))
    next(stream)
    assert runtime.invalidate() > 0
    next(stream)
    assert len(stream.wait().token_ids) == 400
    reuse = runtime.stats().reuse
    assert reuse is not None
    assert reuse.named_pages == 0


def test_events_tell_what_can_be_reused(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    runtime.set_memory_limit(runtime.model.weight_bytes + 4 * CHUNK)
    known: dict[bytes, tuple[int, ...]] = {}
    seen = 0

    def follow() -> None:
        nonlocal seen
        for event in runtime.cache_events(seen):
            assert event.number == seen + 1
            seen = event.number
            if event.kind == "cleared":
                known.clear()
            elif event.name is not None and event.kind == "stored":
                known[event.name.key] = event.name.tokens
            elif event.name is not None:
                del known[event.name.key]

    for n in range(12):
        cached(runtime, [n] * 90)
        follow()
        assert len(known) == runtime.stats().reuse.named_pages
    assert tuple([11] * PAGE) in known.values()
    runtime.invalidate()
    follow()
    assert not known


def test_without_a_cache_its_methods_say_so(make_runtime: MakeRuntime, tmp_path: Path) -> None:
    runtime = make_runtime(prefix_cache=False)
    with pytest.raises(ConfigError, match="prefix_cache is off"):
        runtime.save_cache(tmp_path)
    with pytest.raises(ConfigError, match="prefix_cache is off"):
        make_runtime(prefix_cache=False, cache_dir=tmp_path)
    assert runtime.cache_events() == ()


# --- calls that fail ---------------------------------------------------------------------------


class Unexpected(BaseException):
    """Of no kind that anybody foresaw."""


def raising(fault: BaseException) -> Callable[..., int]:
    def broken(*_: object) -> int:
        raise fault

    return broken


def test_a_call_that_finds_the_page_table_broken_gets_its_error_and_so_do_all_others(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fault = IntegrityError("it does not add up")
    runtime = make_runtime(cache_dir=tmp_path)
    cached(runtime, PROMPT)
    monkeypatch.setattr("kvrt.engine.prefixes.Prefixes.pin", raising(fault))
    for call in (runtime.pin, runtime.unpin):
        with pytest.raises(type(fault), match=str(fault)):
            call(PROMPT)
    runtime.close()
    assert not list(tmp_path.rglob("*.data")), "nothing that a broken engine leaves is saved"


@pytest.mark.parametrize(
    "fault",
    [
        Unexpected(),
        TypeError("a"),
        MemoryError(),
        DeviceError("gone"),
        OSError(5, "b"),
        StoreError("c", reason="full"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_a_call_that_fails_in_any_other_way_is_its_callers_alone(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: BaseException
) -> None:
    runtime = make_runtime(cache_dir=tmp_path)
    beside = runtime.stream(PROMPT, SamplingParams(max_tokens=100, ignore_eos=True))
    monkeypatch.setattr("kvrt.engine.prefixes.Prefixes.pin", raising(fault))
    with pytest.raises(type(fault)):
        runtime.pin(PROMPT)
    assert len(beside.result.token_ids) == 100
    runtime.close()
    assert list(tmp_path.rglob("*.data"))
