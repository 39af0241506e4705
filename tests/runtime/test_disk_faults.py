"""Disks that fail under a runtime: it goes on, its answers are right, and it says so once."""

import errno
import logging
import os
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from kvrt.errors import StoreError
from kvrt.kv.tiers.blockfile import BlockFile, Bytes
from kvrt.kv.tiers.files import DATA
from kvrt.kv.tiers.pagefile import PageFile
from kvrt.outputs import Result
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from tests.tiers.pages import Faults

from .conftest import MakeRuntime, until
from .test_offload import LONG, offloaded, prompts, squeezed, tokens

OpenFile = Callable[..., BlockFile]
WriteDisk = Callable[[OpenFile], None]
TIERS = ("disk:{}:256MiB", "host:3MiB,disk:{}:256MiB")
COUNT = 24

pytestmark = pytest.mark.promise("P22")


@pytest.fixture(scope="module")
def right(tiny_lm: Path) -> list[tuple[int, ...]]:
    with Runtime(tiny_lm, backend="cpu", load_format="dummy", seed=1, prefix_cache=False) as cold:
        return tokens(cold.generate(prompts(COUNT, 1), LONG))


@pytest.fixture
def open_with(monkeypatch: pytest.MonkeyPatch) -> WriteDisk:
    """Let page files be opened from here on by something else than `BlockFile`."""

    def put(open_file: OpenFile) -> None:
        opened = partial(PageFile.open, open_file=open_file)
        monkeypatch.setattr(PageFile, "open", opened)

    return put


def serve(runtime: Runtime) -> list[tuple[int, ...]]:
    asked = prompts(COUNT, 1)
    results: list[Result] = []
    for start in range(0, COUNT, 12):
        results += runtime.generate(asked[start : start + 12], LONG)
    return tokens(results)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("tiers", "error"),
    [(TIERS[0], errno.ENOSPC), (TIERS[1], errno.EIO), (TIERS[1], errno.EROFS)],
)
def test_a_disk_that_takes_nothing_costs_its_pages_and_one_warning(
    tiers: str,
    error: int,
    make_runtime: MakeRuntime,
    right: list[tuple[int, ...]],
    open_with: WriteDisk,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "kv"
    squeezed(make_runtime, tiers.format(folder)).close()
    faults = Faults(0, error, lasting=True)
    failing = partial(FailingWrites, faults=faults)
    open_with(failing)
    runtime = squeezed(make_runtime, tiers.format(folder), preemption="move")
    assert serve(runtime) == right
    assert faults.failed > 0
    disk = offloaded(runtime).disks[0]
    assert disk.stored == 0
    assert disk.dropped > 0
    until(lambda: offloaded(runtime).host.pinned == 0)
    assert len(warnings(caplog)) == 1
    assert runtime.stats().cache.used_pages == 0


class FailingWrites(BlockFile):
    """Can be read, and not written."""

    def __init__(self, path: Path, *, writable: bool, direct: bool, faults: Faults) -> None:
        self._faults = faults
        super().__init__(path, writable=writable, direct=direct)

    def _refuse(self) -> None:
        self._faults.strike()
        raise OSError(self._faults.error, os.strerror(self._faults.error))

    def write(self, data: Bytes, at: int) -> None:
        self._refuse()

    def allocate(self, start: int, end: int) -> None:
        self._refuse()


class FailingReads(BlockFile):
    """Cannot be read any more once it is `broken`."""

    broken = False

    def read(self, into: Bytes, at: int) -> None:
        if FailingReads.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().read(into, at)


def test_pages_that_cannot_be_read_are_computed(
    make_runtime: MakeRuntime,
    right: list[tuple[int, ...]],
    open_with: WriteDisk,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    open_with(FailingReads)
    runtime = squeezed(make_runtime, TIERS[1].format(tmp_path), preemption="move")
    assert serve(runtime) == right
    until(lambda: not runtime.busy)
    fetched = offloaded(runtime).fetched_pages
    assert fetched > 0
    monkeypatch.setattr(FailingReads, "broken", True)
    assert serve(runtime) == right
    assert offloaded(runtime).missed_pages > 0
    assert offloaded(runtime).disks[0].read_errors > 0
    assert len(warnings(caplog)) == 1
    assert runtime.stats().cache.used_pages == 0


@pytest.mark.parametrize("seed", range(2))
def test_whichever_calls_fail_the_answers_are_right(
    seed: int,
    make_runtime: MakeRuntime,
    right: list[tuple[int, ...]],
    open_with: WriteDisk,
    tmp_path: Path,
) -> None:
    """One call in five or so, at random: also writes that stop half-way."""
    rng = random.Random(seed)

    class Now(Faults):
        def strike(self) -> bool:
            hit = self.calls > 20 and rng.random() < 0.2
            self.calls += 1
            self.failed += hit
            return hit

    faults = Now(torn=True)
    open_with(faults)
    runtime = squeezed(make_runtime, TIERS[seed % 2].format(tmp_path), preemption="move")
    assert serve(runtime) == right
    assert serve(runtime) == right
    assert faults.failed > 3
    assert offloaded(runtime).fetched_pages > 0


def test_nobody_waits_for_a_disk_that_hardly_moves(
    make_runtime: MakeRuntime,
    right: list[tuple[int, ...]],
    open_with: WriteDisk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Slow(BlockFile):
        def write(self, data: Bytes, at: int) -> None:
            time.sleep(0.2)
            super().write(data, at)

    monkeypatch.setattr("kvrt.kv.offload._PATIENCE_S", 0.01)
    open_with(Slow)
    runtime = squeezed(make_runtime, TIERS[1].format(tmp_path), preemption="move")
    started = time.monotonic()
    assert serve(runtime) == right
    assert offloaded(runtime).dropped_pages > 0
    assert time.monotonic() - started < 20


class Hanging(BlockFile):
    """Calls for pages' bodies do not return if they are what is `stuck`."""

    stuck = ""
    free = threading.Event()
    waiting = 0

    def __init__(self, path: Path, *, writable: bool, direct: bool) -> None:
        self._of_bodies = path.name == DATA
        super().__init__(path, writable=writable, direct=direct)

    def _pass(self, call: str) -> None:
        if call == Hanging.stuck and self._of_bodies:
            Hanging.waiting += 1
            Hanging.free.wait(60)

    def read(self, into: Bytes, at: int) -> None:
        self._pass("read")
        super().read(into, at)

    def write(self, data: Bytes, at: int) -> None:
        self._pass("write")
        super().write(data, at)


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch, open_with: WriteDisk) -> Iterator[Callable[[str], None]]:
    """Let calls of that kind not return from here on, until `Hanging.free` is set."""
    monkeypatch.setattr("kvrt.kv.tiers.disk.PATIENCE_S", 0.2)
    monkeypatch.setattr("kvrt.kv.offload._PATIENCE_S", 0.05)
    monkeypatch.setattr(Hanging, "free", threading.Event())
    open_with(Hanging)
    monkeypatch.setattr(Hanging, "waiting", 0)
    yield lambda call: monkeypatch.setattr(Hanging, "stuck", call)
    Hanging.free.set()


def test_a_read_that_does_not_return_is_given_up_and_its_pages_are_computed(
    make_runtime: MakeRuntime,
    right: list[tuple[int, ...]],
    hang: Callable[[str], None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    runtime = squeezed(make_runtime, TIERS[1].format(tmp_path), preemption="move")
    assert serve(runtime) == right
    until(lambda: not runtime.busy)
    hang("read")
    assert serve(runtime) == right
    stats = offloaded(runtime)
    assert stats.missed_pages > 0
    assert stats.disks[0].hung > 0
    assert len(warnings(caplog)) == 1
    assert runtime.stats().cache.used_pages == 0
    assert serve(runtime) == right, "and nobody waits for it again"
    assert offloaded(runtime).disks[0].found == stats.disks[0].found
    Hanging.free.set()
    until(lambda: offloaded(runtime).disks[0].hung == 0)
    assert serve(runtime) == right
    assert offloaded(runtime).disks[0].found > stats.disks[0].found, "it is used again"
    until(lambda: offloaded(runtime).host.pinned == 0)


@pytest.mark.parametrize("tiers", TIERS)
def test_a_write_that_does_not_return_keeps_nobody_from_answering(
    tiers: str,
    make_runtime: MakeRuntime,
    right: list[tuple[int, ...]],
    hang: Callable[[str], None],
    tmp_path: Path,
) -> None:
    hang("write")
    runtime = squeezed(make_runtime, tiers.format(tmp_path), preemption="move")
    assert serve(runtime) == right
    until(lambda: offloaded(runtime).disks[0].hung > 0 or not offloaded(runtime).saved_pages)
    assert serve(runtime) == right
    assert offloaded(runtime).disks[0].stored == 0


@pytest.mark.parametrize("known", [True, False], ids=["given up", "just begun"])
def test_closing_does_not_wait_for_a_disk_that_hangs(
    known: bool,
    make_runtime: MakeRuntime,
    right: list[tuple[int, ...]],
    hang: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kvrt.kv.tiers.stores._CLOSE_S", 60.0 if known else 0.5)
    runtime = squeezed(make_runtime, TIERS[1].format(tmp_path), preemption="move")
    assert serve(runtime) == right
    hang("read")
    if known:
        assert serve(runtime) == right
        assert offloaded(runtime).disks[0].hung > 0
    else:
        monkeypatch.setattr("kvrt.kv.tiers.disk.PATIENCE_S", 60.0)
        streams = [runtime.stream(prompt, LONG) for prompt in prompts(COUNT, 1)]
        until(lambda: Hanging.waiting > 0)
        assert len(streams) == COUNT
    runtime.close()
    assert runtime._worker._left.is_set(), "all was given back in time"


def test_a_snapshot_leaves_out_what_a_hanging_disk_has(
    make_runtime: MakeRuntime, hang: Callable[[str], None], tmp_path: Path
) -> None:
    first = make_runtime()
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    first.stream([1] * 80, params).wait()
    first.save_cache(tmp_path / "old")
    first.close()
    runtime = make_runtime()
    assert runtime.load_cache(tmp_path / "old") == 5
    hang("read")
    runtime.stream([2] * 64, params).wait()
    assert runtime.save_cache(tmp_path / "new") == 4
    answer = runtime.stream([1] * 80, params).wait()
    assert answer.error is None
    assert answer.usage.cached_tokens == 0


FULL = """
import resource, signal, sys
from kvrt.runtime import Runtime
from tests.runtime.test_offload import LONG, offloaded, prompts, tokens
runtime = Runtime(
    sys.argv[1], backend="cpu", load_format="dummy", seed=1, debug=True, max_running=4,
    memory_limit="512MiB", offload=sys.argv[2], preemption="move",
)
runtime.set_memory_limit(runtime.model.weight_bytes + (8 << 20))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), hard))
for start in range(0, 24, 12):
    for answer in tokens(runtime.generate(prompts(24, 1)[start : start + 12], LONG)):
        print(*answer)
stored = offloaded(runtime).disks[0].stored
assert stored == 0 if int(sys.argv[3]) < 1 << 18 else stored > 0, stored
runtime.close()
"""


@pytest.mark.parametrize(("tiers", "room"), [(TIERS[1], 50_000), (TIERS[0], 5 << 20)])
def test_a_full_disk_changes_no_answer(
    tiers: str, room: int, tiny_lm: Path, right: list[tuple[int, ...]], tmp_path: Path
) -> None:
    """The system itself refuses what goes beyond `room` bytes."""
    command = [sys.executable, "-c", FULL, str(tiny_lm), tiers.format(tmp_path / "kv"), str(room)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    answers = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert answers == right
    assert done.stderr.count("cannot write") <= 1


def test_a_folder_that_may_not_be_written_is_refused_by_name(
    make_runtime: MakeRuntime, tmp_path: Path
) -> None:
    place = tmp_path / "a file"
    place.write_text("not a folder")
    with pytest.raises(StoreError, match="a file"):
        make_runtime(offload=f"disk:{place}:64MiB")
    runtime = make_runtime()
    with pytest.raises(StoreError, match="a file"):
        runtime.save_cache(place)
    params = SamplingParams(max_tokens=2)
    assert runtime.stream([1, 2, 3], params).wait().error is None, "the runtime goes on"


def test_a_snapshot_that_finds_the_disk_full_says_so_and_is_of_use_as_far_as_it_got(
    make_runtime: MakeRuntime, open_with: WriteDisk, tmp_path: Path
) -> None:
    runtime = make_runtime()
    prompt = [n % 199 for n in range(160)]
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    right = runtime.stream(prompt, params).wait().token_ids
    open_with(Faults(12, errno.ENOSPC, lasting=True))
    with pytest.raises((OSError, StoreError)):
        runtime.save_cache(tmp_path / "kv")
    again = runtime.stream(prompt, params).wait()
    assert again.usage.cached_tokens > 0
    assert again.token_ids == right
    open_with(BlockFile)
    other = make_runtime()
    other.load_cache(tmp_path / "kv")
    assert other.stream(prompt, params).wait().token_ids == right


def test_a_limit_on_open_files_is_an_error_of_the_call_alone(
    make_runtime: MakeRuntime, tmp_path: Path
) -> None:
    runtime = make_runtime()
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    runtime.stream([1] * 40, params).wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 1, hard))  # one, for /proc
    try:
        with pytest.raises((OSError, StoreError)):
            runtime.save_cache(tmp_path / "kv")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert runtime.save_cache(tmp_path / "kv") == 2
