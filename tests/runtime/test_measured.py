"""What the engine learns of the time its steps take."""

import time

import pytest

from kvrt.engine.request import failed_result
from kvrt.errors import RequestError
from kvrt.outputs import Result, Timings, Usage
from kvrt.sampling import SamplingParams

from .conftest import MakeRuntime


def test_each_step_is_measured_alone_with_its_tokens_and_their_context(
    make_runtime: MakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = make_runtime()
    engine = runtime._worker.engine
    assert engine.memory.reuse is not None
    prefills: list[tuple[int, int, float]] = []
    steps: list[tuple[int, float]] = []
    cost = engine.memory.reuse.cost
    monkeypatch.setattr(cost, "computed", lambda *measured: prefills.append(measured))
    monkeypatch.setattr(
        engine.speculation.cost, "observe", lambda *measured: steps.append(measured)
    )
    begun = time.perf_counter()
    runtime.generate([list(range(100))], SamplingParams(max_tokens=3, ignore_eos=True))
    runtime.close()  # an answer is there before its last step was measured
    elapsed = time.perf_counter() - begun
    assert [measured[:2] for measured in prefills] == [(100, 50)]
    assert [tokens for tokens, _ in steps] == [100, 1, 1]
    assert prefills[0][2] == steps[0][1]
    assert all(seconds > 0 for _, seconds in steps)
    assert sum(seconds for _, seconds in steps) <= elapsed


def test_times_are_counted_from_when_it_was_asked(make_runtime: MakeRuntime) -> None:
    begun = time.perf_counter()
    runtime = make_runtime()
    assert 0 < runtime.stats().load_seconds <= time.perf_counter() - begun
    begun = time.perf_counter()
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    for result in runtime.generate([[1, 2], [3]], params):
        times = result.timings
        elapsed = time.perf_counter() - begun
        assert 0 <= times.queued < times.first_token < times.total <= elapsed


def test_what_was_refused_before_the_engine_saw_it_says_what_it_brought() -> None:
    error = RequestError("no")
    assert failed_result("name", [1, 2, 3], error) == Result(
        "name", (1, 2, 3), (), Usage(3, 0), Timings(0.0, 0.0, 0.0), error=error
    )
