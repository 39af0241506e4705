"""What was computed is saved, and loaded by another process."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvrt.errors import (
    KvrtError,
    OutOfMemory,
    StoreError,
)
from kvrt.kv.tiers.names import StoredName
from kvrt.kv.tiers.pagefile import PageFile
from kvrt.runtime import Runtime

from .conftest import MakeRuntime, until
from .test_cache_control import GREEDY, PAGE, PROMPT, cached, raising
from .test_offload import offloaded


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
