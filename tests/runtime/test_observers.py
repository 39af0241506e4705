"""Those who watch a runtime are told what becomes of requests, and can do no harm."""

import time

import pytest

from kvrt.engine.events import (
    Event,
    RequestFinished,
    RequestPreempted,
    RequestQueued,
    RequestStarted,
    StepDone,
)
from kvrt.sampling import SamplingParams

from .conftest import MakeRuntime, until

PARAMS = SamplingParams(max_tokens=20, ignore_eos=True)


def test_an_observer_is_told_of_each_request_and_each_step(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    seen: list[Event] = []
    runtime.add_observer(seen.append)
    before = time.time()
    for name in ("a", "b"):
        runtime.stream([1, 2, 3] * 16, PARAMS, request_id=name, metadata=(name,)).wait()
    until(lambda: not runtime.busy)
    after = time.time()
    runtime.remove_observer(seen.append)
    runtime.generate([[1, 2, 3]], PARAMS)
    assert all(before - 1 <= event.at <= after + 1 for event in seen)
    queued = [event for event in seen if isinstance(event, RequestQueued)]
    started = [event for event in seen if isinstance(event, RequestStarted)]
    finished = [event.result for event in seen if isinstance(event, RequestFinished)]
    assert [(e.request_id, e.metadata, e.prompt_tokens) for e in queued] == [
        ("a", ("a",), 48), ("b", ("b",), 48),
    ]  # fmt: skip
    assert [(e.metadata, e.cached_tokens) for e in started] == [(("a",), 0), (("b",), 32)]
    assert [(r.metadata, r.usage.completion_tokens) for r in finished] == [
        (("a",), 20), (("b",), 20),
    ]  # fmt: skip
    steps = [event for event in seen if isinstance(event, StepDone)]
    assert sum(step.tokens for step in steps) == 48 + 19 + 16 + 19
    assert [step.number for step in steps] == sorted({step.number for step in steps})
    assert all(step.seconds > 0 and step.waiting == 0 for step in steps)


def test_preempted_requests_are_told_of_and_all_finish_once(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(memory_limit="9MiB", prefix_cache=False)
    seen: list[Event] = []
    runtime.add_observer(seen.append)
    params = SamplingParams(max_tokens=200, ignore_eos=True)
    results = runtime.generate([[n] * 60 for n in range(6)], params)
    told = sum(isinstance(event, RequestPreempted) for event in seen)
    assert told == sum(result.usage.preemptions for result in results) > 0
    assert sum(isinstance(event, RequestFinished) for event in seen) == 6


@pytest.mark.promise("P27")
def test_an_observer_that_fails_is_told_nothing_more(
    make_runtime: MakeRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = make_runtime()
    told: list[Event] = []

    def fails(event: Event) -> None:
        told.append(event)
        raise ValueError("my own mistake")

    runtime.add_observer(fails)
    assert len(runtime.generate([[1, 2, 3]], PARAMS)[0].token_ids) == 20
    assert len(told) == 1
    assert "an observer failed" in caplog.text
