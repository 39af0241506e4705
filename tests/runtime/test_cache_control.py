"""What users keep of what was computed, forget, save and load."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvrt.errors import (
    ConfigError,
    DeviceError,
    IntegrityError,
    KvrtError,
    OutOfMemory,
    StoreError,
)
from kvrt.kv.tiers.names import StoredName, chain
from kvrt.kv.tiers.pagefile import PageFile
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

from .conftest import MakeRuntime, until
from .test_offload import offloaded

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


# --- snapshots -------------------------------------------------------------------------------


@pytest.mark.promise("P15")
@pytest.mark.parametrize("compress", [None, 3])
def test_what_was_saved_is_there_after_a_restart(
    compress: int | None, make_runtime: MakeRuntime, tmp_path: Path
) -> None:
    first = make_runtime()
    right = first.stream(PROMPT, GREEDY).wait().token_ids
    assert first.save_cache(tmp_path / "saved", compress=compress) == 10
    assert first.save_cache(tmp_path / "saved") == 0, "all of it is there"
    cached(first, [1] * 40)
    assert first.save_cache(tmp_path / "saved") == 2, "what is new"
    first.close()

    second = make_runtime()
    assert second.load_cache(tmp_path / "saved") == 12
    result = second.stream(PROMPT, GREEDY).wait()
    assert result.usage.cached_tokens == 10 * PAGE
    assert result.token_ids == right


def test_one_prompt_can_be_saved_alone(make_runtime: MakeRuntime, tmp_path: Path) -> None:
    runtime = make_runtime()
    cached(runtime, PROMPT)
    cached(runtime, [1] * 100)
    cached(runtime, [1] * 100, cache_salt="tenant")
    assert runtime.save_cache(tmp_path / "one", [1] * 100) == 6
    assert runtime.save_cache(tmp_path / "one", [1] * 100, cache_salt="tenant") == 6
    assert runtime.save_cache(tmp_path / "all") == 22


def test_one_prompt_can_be_saved_alone_of_those_that_only_a_disk_has(
    make_runtime: MakeRuntime, tmp_path: Path
) -> None:
    def restarted() -> Runtime:
        return make_runtime(offload=f"disk:{tmp_path / 'tier'}:16MiB", offload_write="through")

    first = restarted()
    for prompt in (PROMPT, [1] * 100):
        cached(first, prompt)
    first.close()
    runtime = restarted()
    assert runtime.save_cache(tmp_path / "one", [1] * 100) == 6
    assert runtime.save_cache(tmp_path / "one", [1] * 100) == 0
    assert runtime.save_cache(tmp_path / "all") == 16


@pytest.mark.promise("P21")
def test_pages_of_another_model_or_format_are_refused_and_nothing_changes(
    make_runtime: MakeRuntime, tmp_path: Path
) -> None:
    runtime = make_runtime()
    right = runtime.stream(PROMPT, GREEDY).wait().token_ids
    for number, other in enumerate(
        [make_runtime(seed=2), make_runtime(kv_cache_dtype="bfloat16"), make_runtime(page_size=8)]
    ):
        folder = tmp_path / str(number)
        other.stream(PROMPT, GREEDY).wait()
        assert other.save_cache(folder) > 0
        with pytest.raises(StoreError):
            runtime.load_cache(folder)
        with pytest.raises(StoreError):
            runtime.save_cache(folder)
    assert runtime.stream(PROMPT, GREEDY).wait().token_ids == right


@pytest.mark.promise("P21")
def test_a_damaged_snapshot_is_computed_and_never_believed(
    make_runtime: MakeRuntime, tmp_path: Path
) -> None:
    """One byte of each body is turned; the answers are those of a cold start."""
    first = make_runtime()
    prompts = [[n, *PROMPT] for n in range(8)]
    right = [first.stream(prompt, GREEDY).wait().token_ids for prompt in prompts]
    first.save_cache(tmp_path)
    data = next(path for path in tmp_path.iterdir() if path.name.endswith(".data"))
    rng = random.Random(0)
    with data.open("r+b") as file:
        for at in range(0, data.stat().st_size, 256 << 10):
            place = at + rng.randrange(256 << 10)
            file.seek(place)
            byte = file.read(1)
            file.seek(place)
            file.write(bytes([byte[0] ^ (1 << rng.randrange(8))]))
    second = make_runtime()
    assert second.load_cache(tmp_path) == 80
    results = second.generate(prompts, GREEDY)
    assert [result.token_ids for result in results] == right
    assert sum(result.usage.cached_tokens for result in results) == 0


class Unexpected(BaseException):
    """Of no kind that anybody foresaw."""


def test_a_folder_loaded_again_and_again_costs_what_it_costs_once(
    make_runtime: MakeRuntime, tmp_path: Path
) -> None:
    """And what was added meanwhile is found."""

    def held() -> tuple[int, int]:
        files = [os.path.realpath(file) for file in Path("/proc/self/fd").iterdir()]
        return threading.active_count(), sum(str(tmp_path) in file for file in files)

    first, second = make_runtime(), make_runtime()
    cached(first, PROMPT)
    assert first.save_cache(tmp_path / "saved") == 10
    assert second.load_cache(tmp_path / "saved") == 10
    once = held()
    (tmp_path / "link").symlink_to(tmp_path / "saved")
    for n in range(20):
        assert second.load_cache(tmp_path / ("saved", "link")[n % 2]) == 10
    assert held() == once
    assert len(offloaded(second).disks) == 1
    assert cached(second, PROMPT) == 10 * PAGE
    cached(first, [7] * 40)
    assert first.save_cache(tmp_path / "saved") == 2
    assert second.load_cache(tmp_path / "saved") == 12
    assert cached(second, [7] * 40) == 2 * PAGE


def test_a_folder_that_cannot_be_read_for_want_of_memory_is_let_go_and_can_be_loaded_later(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = make_runtime(), make_runtime()
    cached(first, PROMPT)
    first.save_cache(tmp_path)
    threads, files = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as scarce:
        staging = raising(OutOfMemory("no host memory"))
        scarce.setattr("kvrt.kv.tiers.host.HostStore.staging", staging)
        with pytest.raises(OutOfMemory, match="no host memory"):
            second.load_cache(tmp_path)
    assert set(threading.enumerate()) <= threads
    assert len(os.listdir("/proc/self/fd")) <= files
    assert second.load_cache(tmp_path) == 10
    assert cached(second, PROMPT) == 10 * PAGE


@pytest.mark.promise("P22")
@pytest.mark.parametrize("call", ["open", "write", "sync"])
def test_nobody_but_its_caller_waits_for_the_disk_of_a_snapshot(
    call: str, make_runtime: MakeRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = make_runtime()
    right = runtime.stream(PROMPT, GREEDY).wait().token_ids
    reached, let_go = threading.Event(), threading.Event()
    inner = getattr(PageFile, call)

    def stuck(*args: Any, **kwargs: Any) -> Any:
        reached.set()
        assert let_go.wait(60)
        return inner(*args, **kwargs)

    monkeypatch.setattr(PageFile, call, stuck)
    with ThreadPoolExecutor() as threads:
        try:
            saving = threads.submit(runtime.save_cache, tmp_path)
            assert reached.wait(60)
            assert runtime.stream(PROMPT, GREEDY).wait().token_ids == right
            loading = threads.submit(runtime.load_cache, tmp_path)
            assert cached(runtime, [7] * 40) == 0
            assert not saving.done()
        finally:
            let_go.set()
        assert saving.result() == loading.result() == 10


def test_what_is_forgotten_while_it_is_saved_is_not_saved_as_something_else(
    make_runtime: MakeRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pages that come next have another prompt's tokens, when their turn comes."""
    monkeypatch.setattr("kvrt.engine.snapshots.PIECE_PAGES", 1)
    runtime = make_runtime()
    prompts = [[n, *PROMPT] for n in range(4)]
    right = runtime.stream(prompts[0], GREEDY).wait().token_ids
    write = PageFile.write
    left = iter(range(3, 0, -1))

    def forgetting(self: PageFile, name: StoredName, data: np.ndarray[Any, Any]) -> bool:
        if next(left, 0) == 1:
            runtime.invalidate()
            for prompt in prompts[1:]:
                runtime.stream(prompt, GREEDY).wait()
        return write(self, name, data)

    monkeypatch.setattr(PageFile, "write", forgetting)
    assert runtime.save_cache(tmp_path) == 3
    other = make_runtime()
    assert other.load_cache(tmp_path) == 3
    result = other.stream(prompts[0], GREEDY).wait()
    assert result.usage.cached_tokens == 3 * PAGE
    assert result.token_ids == right


def test_a_runtime_that_is_closed_while_it_saves_says_so_and_what_was_written_is_there(
    make_runtime: MakeRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvrt.engine.snapshots.PIECE_PAGES", 1)
    runtime = make_runtime()
    cached(runtime, PROMPT)
    write = PageFile.write

    def closing(self: PageFile, name: StoredName, data: np.ndarray[Any, Any]) -> bool:
        written = write(self, name, data)
        runtime.close()
        return written

    monkeypatch.setattr(PageFile, "write", closing)
    with pytest.raises(KvrtError, match="closed"):
        runtime.save_cache(tmp_path)
    assert make_runtime().load_cache(tmp_path) == 1


def test_many_folders_cost_no_threads_while_nobody_reads_them(
    make_runtime: MakeRuntime, tmp_path: Path
) -> None:
    first, second = make_runtime(), make_runtime()
    cached(first, PROMPT)
    threads = threading.active_count()
    for n in range(20):
        first.save_cache(tmp_path / str(n))
        second.load_cache(tmp_path / str(n))
    assert threading.active_count() == threads
    assert cached(second, PROMPT) == 10 * PAGE


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


# --- the folder of a process -----------------------------------------------------------------


def test_a_cache_folder_brings_back_what_an_earlier_process_computed(
    make_runtime: MakeRuntime, tmp_path: Path
) -> None:
    for seen in (0, 10 * PAGE, 10 * PAGE):
        runtime = make_runtime(cache_dir=tmp_path / "kv")
        assert cached(runtime, PROMPT) == seen
        runtime.close()
    other = make_runtime(cache_dir=tmp_path / "kv", seed=2)
    assert cached(other, PROMPT) == 0, "another model has a place of its own in it"


def test_closing_in_time_is_worth_more_than_saving_all(
    make_runtime: MakeRuntime,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = PageFile.write

    def slow(self: PageFile, name: StoredName, data: np.ndarray[Any, Any]) -> bool:
        time.sleep(0.2)
        return write(self, name, data)

    monkeypatch.setattr(PageFile, "write", slow)
    runtime = make_runtime(cache_dir=tmp_path / "kv")
    right = runtime.stream(PROMPT, GREEDY).wait().token_ids
    begun = time.monotonic()
    runtime.close(timeout=0.7)
    assert time.monotonic() - begun < 1.5
    assert any("closing interrupted it after" in record.message for record in caplog.records)
    result = make_runtime(cache_dir=tmp_path / "kv").stream(PROMPT, GREEDY).wait()
    assert 2 * PAGE <= result.usage.cached_tokens <= 5 * PAGE
    assert result.token_ids == right


@pytest.mark.promise("P22")
def test_a_cache_folder_that_cannot_be_used_is_said_and_everything_else_works(
    make_runtime: MakeRuntime, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "a file"
    place.write_text("not a folder")
    runtime = make_runtime(cache_dir=place)
    assert cached(runtime, PROMPT) == 0
    assert cached(runtime, PROMPT) == 10 * PAGE
    runtime.close()
    assert any("cached pages are not" in record.message for record in caplog.records)
    assert place.read_text() == "not a folder"


SAVING = """
import sys
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
runtime = Runtime(sys.argv[1], backend="cpu", load_format="dummy", seed=1, memory_limit="512MiB")
for n in range(12):
    runtime.generate([[n] * 300], SamplingParams(max_tokens=2, ignore_eos=True))
print("saving", flush=True)
while True:
    runtime.save_cache(sys.argv[2], compress=9)
    runtime.invalidate()
    runtime.generate([[len(sys.argv)] * 300], SamplingParams(max_tokens=2, ignore_eos=True))
"""


@pytest.mark.promise("P10")
@pytest.mark.parametrize("pause_ms", [0, 5, 20, 60])
def test_a_process_killed_while_it_saves_leaves_pages_that_are_right_or_none(
    pause_ms: int, tiny_lm: Path, make_runtime: MakeRuntime, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SAVING, str(tiny_lm), str(tmp_path / "kv")], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"saving\n"
    until(lambda: any((tmp_path / "kv").glob("*")))
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(pause_ms / 1000)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    cold, runtime = make_runtime(prefix_cache=False), make_runtime()
    try:
        runtime.load_cache(tmp_path / "kv")
    except StoreError:
        return  # killed before its first bytes were written
    prompts = [[n] * 300 for n in range(12)]
    answers = [result.token_ids for result in runtime.generate(prompts, GREEDY)]
    assert answers == [result.token_ids for result in cold.generate(prompts, GREEDY)]
    assert runtime.save_cache(tmp_path / "kv") >= 0, "it can be written again"
