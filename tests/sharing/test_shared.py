"""Runtimes that share a device's memory, in one process and in several."""

import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvrt import CapacityError, ConfigError, Runtime, SamplingParams, StoreError
from kvrt.sharing.share import Share, ledger_folder
from kvrt.sharing.tenant import tenants_of
from kvrt.units import MIB

WEIGHTS = 7.26 * MIB
"""Of the bundled model, about; a page of it for 16 tokens takes 32 KiB, a chunk 2 MiB."""

LONG = SamplingParams(max_tokens=120, ignore_eos=True)
ONE = SamplingParams(max_tokens=1, ignore_eos=True)
MakeRuntime = Callable[..., Runtime]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shares"
    monkeypatch.setenv("KVRT_SHARE_DIR", str(folder))
    return folder


@pytest.fixture
def make() -> Iterator[MakeRuntime]:
    made: list[Runtime] = []

    def make(size: str = "24MiB", **terms: object) -> Runtime:
        share = Share(name="test", size=size, **terms)  # type: ignore[arg-type]
        made.append(Runtime("tiny", keep_warm=0, share=share))
        return made[-1]

    yield make
    for runtime in made:
        runtime.close()


def held(folder: Path) -> list[int]:
    """Bytes that each tenant holds: never more than there are."""
    total, rows = tenants_of(folder / "test.cpu0")
    found = [row.claim.held for row in rows]
    assert sum(found) <= total
    return found


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.01)


def prompts(count: int, length: int) -> list[list[int]]:
    return [[n % 199, n % 13] * (length // 2) for n in range(count)]


def test_two_at_once_never_hold_more_than_they_share_and_all_is_answered(
    make: MakeRuntime, folder: Path
) -> None:
    runtimes = make(), make()
    errors: list[object] = []

    def ask(runtime: Runtime) -> None:
        errors.extend(r.error for r in runtime.generate(prompts(24, 120), LONG))

    threads = [threading.Thread(target=ask, args=(runtime,)) for runtime in runtimes]
    for thread in threads:
        thread.start()
    most = 0
    while any(thread.is_alive() for thread in threads):
        most = max(most, sum(held(folder)))
        time.sleep(0.002)
    assert errors == [None] * 48
    assert most > 20 * MIB, "they had to share, else this shows nothing"


def test_what_an_idle_one_only_caches_goes_to_one_that_runs(
    make: MakeRuntime, folder: Path
) -> None:
    idle, busy = make(), make()
    idle.generate(prompts(20, 200), ONE)
    until(lambda: not idle.busy)
    assert idle.stats().cache.cached_bytes > 5 * MIB
    results = busy.generate(prompts(12, 200), LONG)
    assert [r.error for r in results] == [None] * 12
    assert idle.stats().cache.mapped_bytes + idle.stats().cache.pooled_bytes <= 4 * MIB
    assert idle.generate("def f(", ONE)[0].error is None


def test_an_idle_one_gives_when_it_is_asked_and_does_not_look_by_itself(
    make: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvrt.kv.memory._WATCHING_S", 3600.0)
    idle, busy = make(), make()
    for _ in range(2):
        idle.generate(prompts(20, 200), ONE)
        until(lambda: not idle.busy)
        results = busy.generate(prompts(12, 200), LONG)
        assert [r.error for r in results] == [None] * 12
        assert busy.stats().cache.peak_mapped_bytes >= 6 * MIB, "all that the idle one cached"


def test_a_guarantee_is_kept_free_while_its_owner_sleeps(make: MakeRuntime, folder: Path) -> None:
    greedy, owner = make(), make(guarantee="14MiB")
    others = threading.Thread(target=greedy.generate, args=(prompts(24, 120), LONG))
    others.start()
    while others.is_alive():
        assert sum(held(folder)[:1]) <= 10 * MIB
        time.sleep(0.005)
    others.join()
    result = owner.generate(prompts(4, 200), LONG)
    assert [r.error for r in result] == [None] * 4


def test_a_model_that_does_not_fit_is_refused_and_says_who_is_there(
    make: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvrt.engine.assembly.LEASE_S", 0.2)
    make(size="16MiB")
    with pytest.raises(CapacityError, match=r"tiny \(process \d+\) holds"):
        make(size="16MiB")
    with pytest.raises(CapacityError, match="guarantee"):
        make(size="16MiB", guarantee="17MiB")
    with pytest.raises(ConfigError, match="in use by tiny"):
        make(size="99MiB")


def test_a_closed_runtime_holds_nothing(make: MakeRuntime, folder: Path) -> None:
    make().close()
    assert held(folder) == []
    runtime = make()
    runtime.generate(prompts(8, 200), LONG)
    runtime.close()
    assert held(folder) == []


TENANT = """
import sys, time
from kvrt import Runtime, SamplingParams
from kvrt.sharing.share import Share
runtime = Runtime("tiny", keep_warm=0, share=Share(name="test", size="24MiB"))
print("ready", flush=True)
if sys.stdin.readline():
    params = SamplingParams(max_tokens=120, ignore_eos=True)
    while True:
        results = runtime.generate([[n % 199, n % 13] * 60 for n in range(24)], params)
        print([str(r.error) for r in results if r.error] or "done", flush=True)
"""


@pytest.fixture
def other() -> Iterator["subprocess.Popen[str]"]:
    """A process of its own, with a runtime that begins to work when it is told to."""
    process = subprocess.Popen(
        [sys.executable, "-c", TENANT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()
    yield process
    process.kill()
    process.communicate()


def texts(runtime: Runtime, asked: list[list[int]]) -> list[tuple[int, ...]]:
    results = runtime.generate(asked, LONG)
    assert [result.error for result in results] == [None] * len(asked)
    return [result.completions[0].token_ids for result in results]


MOMENTS = [0, *(pytest.param(number, marks=pytest.mark.extra) for number in range(1, 50))]


@pytest.mark.promise("P8")
@pytest.mark.parametrize("moment", MOMENTS)
def test_what_a_killed_process_held_is_there_for_the_others_whose_answers_stay(
    make: MakeRuntime, folder: Path, other: "subprocess.Popen[str]", moment: int
) -> None:
    runtime = make()
    expected = texts(runtime, prompts(3, 60))
    assert runtime.stats().cache.peak_mapped_bytes < 8 * MIB, "the rest is the other's"
    until(lambda: max(held(folder)) > WEIGHTS + 4 * MIB)
    time.sleep(moment / 20)
    other.send_signal(signal.SIGKILL)
    other.wait()
    until(lambda: len(held(folder)) == 1, seconds=1)
    assert texts(runtime, prompts(24, 120))
    assert runtime.stats().cache.peak_mapped_bytes > 10 * MIB
    assert texts(runtime, prompts(3, 60)) == expected


def test_two_processes_share_alike(
    make: MakeRuntime, folder: Path, other: "subprocess.Popen[str]"
) -> None:
    runtime = make()
    errors: list[object] = []
    thread = threading.Thread(
        target=lambda: errors.extend(r.error for r in runtime.generate(prompts(40, 120), LONG))
    )
    thread.start()
    least = 24 * MIB
    while thread.is_alive():
        found = held(folder)
        least = min(least, 24 * MIB - sum(found)) if len(found) == 2 else least
        time.sleep(0.005)
    assert errors == [None] * 40
    assert least <= 4 * MIB, "they had to share, else this shows nothing"
    assert other.stdout is not None
    lines = itertools.islice(iter(other.stdout.readline, ""), 1)
    assert [*lines] == ["done\n"]


@pytest.mark.parametrize(
    ("terms", "why"),
    [
        ({"name": "../x"}, "called"), ({"name": ""}, "name"), ({"name": "x" * 49}, "called"),
        ({"name": "x", "size": "much"}, "size"), ({"name": "x", "guarantee": -1}, "guarantee"),
        ({"name": "x", "weight": 0}, "weight"), ({"name": "x", "priority": 1.5}, "priority"),
        ({"name": "x", "lend": "yes"}, "lend"), ({"name": "x", "guarantee": ""}, "guarantee"),
    ],
)  # fmt: skip
def test_terms_that_cannot_be_are_refused_by_name(terms: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Share(**terms)  # type: ignore[arg-type]


def test_a_folder_that_others_may_write_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVRT_SHARE_DIR", str(tmp_path / "open"))
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(StoreError, match="others may write"):
        ledger_folder()
    (tmp_path / "open").chmod(0o700)
    assert ledger_folder() == tmp_path / "open"
