"""Who ends when: streams, runtimes, programs, and children of a fork."""

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import kvrt.engine.worker
import kvrt.ranks.loading
from kvrt.engine.request import Request
from kvrt.errors import CapacityError, ConfigError, DeviceError, KvrtError, RequestError
from kvrt.model.loader import Model, load_model
from kvrt.outputs import Delta
from kvrt.outputs import Result as Answer
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.spi import Device
from kvrt.stream import Stream
from kvrt.wrappers.parts import Params, Result
from kvrt.wrappers.wrapper import Wrapper

from .conftest import Break, MakeRuntime, until

LONG = SamplingParams(max_tokens=900, ignore_eos=True)
SHORT = SamplingParams(max_tokens=4, ignore_eos=True)


OTHERS = set[threading.Thread]()
"""Threads of other tests' runtimes, which may live on."""


@pytest.fixture(autouse=True)
def others() -> None:
    OTHERS.update(threading.enumerate())


def engines() -> int:
    here = set(threading.enumerate()) - OTHERS
    return sum(thread.name == "kvrt-engine" for thread in here)


# --- the names of requests -------------------------------------------------------------------


def test_a_name_in_use_is_refused_and_free_again_when_its_request_has_ended(
    make_runtime: MakeRuntime,
) -> None:
    runtime = make_runtime()
    first = runtime.stream([1], LONG, request_id="x")
    with pytest.raises(RequestError, match="not ended yet") as caught:
        runtime.stream([2], SHORT, request_id="x")
    assert caught.value.param == "request_id"
    runtime.abort("x")
    assert first.wait().finish_reason == "abort"
    again = runtime.stream([2], SHORT, request_id="x")
    assert again.result.request_id == "x"
    runtime.abort("x")
    runtime.abort("nobody's")


def test_closing_a_stream_ends_its_own_request_and_no_namesake(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    ended = runtime.stream([1], SHORT, request_id="x")
    until(lambda: not runtime.busy)
    namesake = runtime.stream([2], SamplingParams(max_tokens=60, ignore_eos=True), request_id="x")
    ended.close()
    del ended
    assert namesake.wait().finish_reason == "length"


def test_a_made_name_is_nobody_elses(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    names = {runtime.stream([1], SHORT).request_id for _ in range(200)}
    assert len(names) == 200
    with runtime.stream([1], LONG) as mine, runtime.stream([2], LONG) as other:
        mine.close()
        assert mine.wait().finish_reason == "abort"
        assert isinstance(next(other), Delta)


# --- streams that nobody holds ---------------------------------------------------------------


def leave_by_break(runtime: Runtime) -> None:
    for _ in runtime.stream([1, 2], LONG):
        break


def drop_unread(runtime: Runtime) -> None:
    runtime.stream([1, 2], LONG)


def drop_in_a_cycle(runtime: Runtime) -> None:
    cycle: list[object] = [runtime.stream([1, 2], LONG)]
    cycle.append(cycle)
    del cycle
    gc.collect()


@pytest.mark.parametrize("leave", [leave_by_break, drop_unread, drop_in_a_cycle])
def test_a_stream_that_nobody_holds_ends_its_request(
    leave: Callable[[Runtime], None], make_runtime: MakeRuntime
) -> None:
    runtime = make_runtime()
    leave(runtime)
    until(lambda: not runtime.busy)
    assert runtime.stats().steps < 800, "it did not run to its end"


def test_a_stream_may_be_collected_by_a_thread_that_is_just_asking(
    make_runtime: MakeRuntime,
) -> None:
    """The collector runs anywhere; if it had to wait for a lock of its own thread, it would for
    ever."""
    runtime = make_runtime()
    streams = [runtime.stream([1], LONG)]

    def collect() -> None:
        with runtime._worker._gate:
            streams.clear()
            runtime._worker.stop()

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def test_an_interrupted_call_ends_all_that_it_asked_for(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks at the exception keeps its frames, and with them the streams."""
    asked: list[Stream] = []

    class Watched(Stream):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            asked.append(self)

        def wait(self) -> Answer:
            if len(asked) == 8 and self is asked[0] and not hasattr(self, "interrupted"):
                self.interrupted = True
                raise KeyboardInterrupt
            return super().wait()

    monkeypatch.setattr("kvrt.runtime.Stream", Watched)
    with pytest.raises(KeyboardInterrupt):
        make_runtime().generate([[1, 2]] * 8, LONG)
    assert [stream.wait().finish_reason for stream in asked] == ["abort"] * 8


@pytest.mark.promise("P13")
def test_pages_of_a_request_that_was_aborted_are_free_when_the_next_step_is_planned(
    make_runtime: MakeRuntime,
) -> None:
    runtime = make_runtime(prefix_cache=False)
    stream = runtime.stream([1] * 300, LONG, request_id="x")
    next(stream)
    worker = runtime._worker

    def abort() -> int:
        request = worker._unanswered[worker._names["x"]]
        assert isinstance(request, Request)
        before = runtime.stats().cache
        worker.engine.abort(request)
        after = runtime.stats().cache
        assert before.used_pages >= 19
        assert (after.used_pages, after.retired_pages) == (0, before.used_pages)
        worker.engine.memory.make_room()
        assert runtime.stats().cache.retired_pages == 0
        return stream._inbox._events.qsize()

    assert worker.call(abort) > 0, "the result was delivered"
    assert stream.wait().finish_reason == "abort"


# --- the engine's thread ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [TypeError("'<' not supported"), MemoryError(), RuntimeError("can't start new thread"),
     CapacityError("no"), DeviceError("the device fell off the bus"), KeyboardInterrupt()],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_what_a_call_raises_is_its_callers_alone(
    error: BaseException, make_runtime: MakeRuntime
) -> None:
    runtime = make_runtime()
    neighbour = runtime.stream([1], SamplingParams(max_tokens=50, ignore_eos=True))

    def fail() -> int:
        raise error

    with pytest.raises(type(error)) as caught:
        runtime._worker.call(fail)
    assert caught.value is error
    assert neighbour.wait().finish_reason == "length"
    assert runtime.generate([[2]], SHORT)[0].error is None


class Panic(BaseException):
    """As native code raises it: no `Exception`."""


class Panicking(Wrapper):
    """Its attention panics from when it is told to."""

    panics = False

    def around(
        self, name: str, call: Callable[Params, Result], *args: Params.args, **kwargs: Params.kwargs
    ) -> Result:
        if name == "attention.plan" and Panicking.panics:
            raise Panic("attempt to subtract with overflow")
        return call(*args, **kwargs)


@pytest.mark.promise("P17")
def test_a_panic_on_the_engines_thread_leaves_nobody_waiting(
    make_runtime: MakeRuntime, break_device: Break, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_device(Panicking)
    runtime = make_runtime()
    streams = [runtime.stream([n], LONG) for n in range(3)]
    next(streams[0])
    monkeypatch.setattr(Panicking, "panics", True)
    streams.append(runtime.stream([9] * 300, LONG))
    assert all("subtract with overflow" in str(stream.wait().error) for stream in streams)
    assert not runtime.busy
    with pytest.raises(KvrtError, match="subtract with overflow"):
        runtime.pin([1] * 20)
    runtime.close()
    assert not engines()


def test_what_the_engine_has_not_begun_when_it_ends_is_answered(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    worker = runtime._worker
    busy, go = threading.Event(), threading.Event()

    def hold() -> int:
        busy.set()
        assert go.wait(60)
        return 7

    with ThreadPoolExecutor(2) as pool:
        held = pool.submit(worker.call, hold)
        assert busy.wait(60)
        stream = runtime.stream([1], SHORT)
        call = pool.submit(worker.call, lambda: 8)
        until(lambda: worker._commands.qsize() == 2)
        worker.stop()
        go.set()
        answer = stream.wait()
        assert held.result() == 7
        with pytest.raises(KvrtError, match="closed"):
            call.result()
    assert answer.finish_reason == "error"
    assert "closed" in str(answer.error)
    assert not runtime.busy


@pytest.mark.parametrize("timeout", [0, 0.5, 1e30, float("inf"), None, 10**400])
def test_closing_takes_any_time_that_makes_sense(
    timeout: float | None, make_runtime: MakeRuntime
) -> None:
    runtime = make_runtime()
    stream = runtime.stream([1], LONG)
    runtime.close(timeout)
    assert stream.wait().finish_reason == "error"
    assert not engines()


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1", True])
def test_a_time_that_makes_no_sense_closes_nothing(
    timeout: float, make_runtime: MakeRuntime
) -> None:
    runtime = make_runtime()
    with pytest.raises(ConfigError, match="timeout"):
        runtime.close(timeout)
    assert runtime.generate([[1]], SHORT)[0].error is None


# --- runtimes that nobody holds --------------------------------------------------------------


def test_a_runtime_that_nobody_holds_is_closed(tiny_lm: Path) -> None:
    """Streams hold theirs."""
    runtime = Runtime(tiny_lm, backend="cpu", load_format="dummy", memory_limit="64MiB")
    gone = weakref.ref(runtime)
    weight = weakref.ref(runtime.model.decoder.weights.embedding)
    stream = runtime.stream([1], SamplingParams(max_tokens=60, ignore_eos=True))
    runtime.pin([1] * 20)
    del runtime
    assert stream.wait().finish_reason == "length"
    assert gone() is not None
    del stream
    assert gone() is None, "no cycle, and not the engine, holds it"
    until(lambda: not engines() and weight() is None)


@pytest.mark.parametrize("where", ["threading.Thread.start", "concurrent.futures.Future.result"])
def test_an_interrupted_opening_leaves_nothing_behind(
    where: str, make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the exception, and so the half-made runtime, is still looked at."""
    owner = threading.Thread if "Thread" in where else kvrt.engine.worker.Future
    name = where.rpartition(".")[2]
    whole = getattr(owner, name)

    def interrupted(self: object) -> None:
        whole(self)
        if getattr(self, "name", "kvrt-engine") == "kvrt-engine":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt) as caught:
            make_runtime()
    until(lambda: not engines())
    assert caught.value is not None


# --- memory ----------------------------------------------------------------------------------


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref]:
    """Of each model that is loaded from here on, its largest weight, as long as there is one."""
    loaded: list[weakref.ref] = []

    def load(*args: object, **options: object) -> Model:
        model = load_model(*args, **options)  # type: ignore[arg-type]
        loaded.append(weakref.ref(model.decoder.weights.embedding))
        loaded.append(weakref.ref(model.resident.memory))
        return model

    monkeypatch.setattr(kvrt.ranks.loading, "load_model", load)
    return loaded


def test_closing_gives_the_weights_back_at_once(
    make_runtime: MakeRuntime, weights: list[weakref.ref]
) -> None:
    """No collector has to come by; and what describes the model is still there."""
    gc.disable()
    try:
        runtime = make_runtime()
        runtime.generate([[1] * 20], SHORT)
        assert weights[0]() is not None
        runtime.close()
        assert not [each for each in weights if each() is not None]
    finally:
        gc.enable()
    assert runtime.stats().weight_bytes == runtime.model.weight_bytes > 0
    assert runtime.model.spec.vocab == 199


def test_a_failed_opening_gives_the_weights_back_at_once(
    make_runtime: MakeRuntime, weights: list[weakref.ref], break_device: Break
) -> None:
    """Also while somebody looks at the error."""

    class NoRoom(Wrapper):
        def around(
            self,
            name: str,
            call: Callable[Params, Result],
            *args: Params.args,
            **kwargs: Params.kwargs,
        ) -> Result:
            if name == "memory.create":
                raise CapacityError("no room")
            return call(*args, **kwargs)

    def opened(device: Device) -> Device:
        return NoRoom(device)

    break_device(opened)
    gc.disable()
    try:
        with pytest.raises(CapacityError) as caught:
            make_runtime()
        until(lambda: not engines())
        assert not [each for each in weights if each() is not None]
        assert caught.value is not None
    finally:
        gc.enable()


# --- programs that end -----------------------------------------------------------------------

BEGIN = """
import os, sys, kvrt
r = kvrt.Runtime(
    {model!r}, backend="cpu", load_format="dummy", seed=1, memory_limit="64MiB", cache_dir={cache!r}
)
done = r.generate([[5] * 100], kvrt.SamplingParams(max_tokens=4, ignore_eos=True))[0]
s = r.stream([1], kvrt.SamplingParams(max_tokens=900, ignore_eos=True))
next(s)
"""


def run(model: Path, cache: Path, end: str) -> subprocess.CompletedProcess[str]:
    code = BEGIN.format(model=str(model), cache=str(cache)) + end
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("end", "code", "says"),
    [
        ("", 0, ""),
        ("raise ValueError('boom')", 1, "ValueError: boom"),
        ("s.close(); s.wait()", 0, ""),
        ("del r, s", 0, ""),
        ("r.close(); sys.modules['kept'] = r", 0, ""),
    ],
    ids=["running", "raising", "idle", "dropped", "closed and kept"],
)
def test_a_program_ends_with_its_own_exit_code_and_its_pages_saved(
    end: str, code: int, says: str, tiny_lm: Path, tmp_path: Path
) -> None:
    ended = run(tiny_lm, tmp_path / "cache", end)
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.strip().rpartition("\n")[2] == says
    with Runtime(
        tiny_lm, backend="cpu", load_format="dummy", seed=1, memory_limit="64MiB",
        cache_dir=tmp_path / "cache",
    ) as runtime:  # fmt: skip
        assert runtime.generate([[5] * 100], SHORT)[0].usage.cached_tokens == 96


def test_a_forked_child_closes_at_once_and_is_never_left_waiting(
    tiny_lm: Path, tmp_path: Path
) -> None:
    fork = """
import time, warnings
warnings.simplefilter("ignore")
child = os.fork()
if child == 0:
    begun = time.monotonic()
    for ask in (s.wait, lambda: next(s), lambda: r.generate([[1]]), lambda: r.abort("x"),
                lambda: r.pin([1]), lambda: r.set_memory_limit("64MiB")):
        try:
            ask()
        except kvrt.KvrtError as error:
            assert "before a fork" in str(error)
        else:
            raise AssertionError("it was answered")
    with r, s:
        pass
    r.close()
    assert time.monotonic() - begun < 5
    os._exit(3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
assert s.wait().finish_reason == "length"
"""
    ended = run(tiny_lm, tmp_path / "cache", fork)
    assert (ended.returncode, ended.stderr) == (0, "")
