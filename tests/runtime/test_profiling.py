"""A recording says what the engine did: phases that are the step, and requests with their times."""

import json
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kvrt.engine.events import Event, StepDone, StepPhases
from kvrt.outputs import Result
from kvrt.profiling.chrome import ENGINE, REQUESTS, chrome
from kvrt.profiling.recorder import Recorder, Recording
from kvrt.profiling.totals import Limits, Work, measured, totals
from kvrt.profiling.tracks import tracks
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

from .conftest import MakeRuntime, until

PARAMS = SamplingParams(max_tokens=20, ignore_eos=True)
ROUNDED_US = 0.0021
"""Times in the file are rounded to nanoseconds, at both ends."""


@pytest.fixture(scope="module")
def seen(tiny_lm: Path) -> tuple[Recording, list[Result]]:
    """Requests of which some are preempted, as pages run out; they go to host memory."""
    params = SamplingParams(max_tokens=200, ignore_eos=True)
    with (
        Runtime(
            tiny_lm,
            backend="cpu",
            load_format="dummy",
            seed=1,
            memory_limit="9MiB",
            offload="host:64MiB",
            preemption="move",
        ) as runtime,
        Recorder(runtime) as recorder,
    ):
        results = runtime.generate([[n] * 60 for n in range(4)], params)
    return recorder.recording, results


def test_the_file_is_one_of_trace_events_whose_slices_nest(
    seen: tuple[Recording, list[Result]], tmp_path: Path
) -> None:
    recording, results = seen
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(chrome(recording)))
    events = json.loads(path.read_text())["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "C"}
    end = (recording.ended - recording.began) * 1e6 + 1
    for event in events:
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert event["name"]
        assert 0 <= event["ts"] <= end
        assert event["ph"] != "X" or 0 <= event["dur"] <= end - event["ts"]
        assert event["ph"] != "C" or all(value >= 0 for value in event["args"].values())
    slices = [event for event in events if event["ph"] == "X"]
    assert {(event["pid"], event["tid"]) for event in slices} == {(ENGINE, 1)} | {
        (REQUESTS, number) for number in range(1, len(results) + 1)
    }
    for track in by_track(slices):
        check_nesting(track)
    named = [e["args"]["name"] for e in events if e["name"] == "thread_name"]
    assert {*named} == {"engine", *(result.request_id for result in results)}


def by_track(slices: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    found = defaultdict(list)
    for event in slices:
        found[event["pid"], event["tid"]].append(event)
    yield from found.values()


def check_nesting(track: list[dict[str, Any]]) -> None:
    """Each is within what is open, or behind it."""
    open_until: list[float] = []
    for event in track:
        while open_until and open_until[-1] <= event["ts"] + ROUNDED_US:
            open_until.pop()
        assert not open_until or event["ts"] + event["dur"] <= open_until[-1] + ROUNDED_US
        open_until.append(event["ts"] + event["dur"])


def test_the_phases_of_a_step_follow_each_other_and_are_all_of_it(
    seen: tuple[Recording, list[Result]],
) -> None:
    recording, _ = seen
    for step in recording.steps:
        turns = sorted((s for s in step.spans if not s.depth), key=lambda span: span.began)
        assert turns[0].name == "fetch"
        for one, next_one in pairwise(turns):
            assert one.ended == next_one.began
        for span in step.spans:
            assert turns[0].began <= span.began <= span.ended <= turns[-1].ended
    numbers = [step.number for step in recording.steps]
    assert numbers == sorted(set(numbers))
    names = {span.name for step in recording.steps for span in step.spans}
    assert {"fetch", "plan", "map", "run", "index", "sample", "wait", "answer", "unmap"} < names
    assert "detokenise" in names


def test_steps_are_most_of_the_time_in_which_requests_run(make_runtime: MakeRuntime) -> None:
    """What is between steps is nothing that grows with them; a busy machine may let it wait."""
    runtime = make_runtime(debug=False)
    with Recorder(runtime) as recorder:
        (result,) = runtime.generate([[1] * 600], SamplingParams(max_tokens=1))
    found = totals(recorder.recording.steps)
    assert 0.5 * result.timings.total < found.seconds
    assert found.prompt_tokens == 600
    assert found.computing <= found.seconds


def test_a_requests_track_has_its_own_times(seen: tuple[Recording, list[Result]]) -> None:
    recording, results = seen
    found = {track.request_id: track for track in tracks(recording)}
    assert found.keys() == {result.request_id for result in results}
    for result in results:
        segments = found[result.request_id].segments
        for one, next_one in pairwise(segments):
            assert one.ended == next_one.began
        began, timings = segments[0].began, result.timings
        assert segments[-1].ended - began == pytest.approx(timings.total, abs=1e-6)
        first = next(each for each in segments if each.state != "queued")
        assert first.began - began == pytest.approx(timings.queued, abs=1e-6)
        decode = next(each for each in segments if each.state == "decode")
        assert decode.began - began == pytest.approx(timings.first_token, abs=1e-6)
        preempted = sum(each.state == "preempted" for each in segments)
        assert preempted == result.usage.preemptions
    states = {segment.state for track in found.values() for segment in track.segments}
    assert states == {"queued", "prefill", "decode", "preempted", "fetched"}


def test_what_has_not_ended_goes_on_to_the_end_of_the_recording(
    make_runtime: MakeRuntime,
) -> None:
    runtime = make_runtime()
    with runtime.stream([1, 2, 3], SamplingParams(max_tokens=900, ignore_eos=True)) as stream:
        next(iter(stream))
        with Recorder(runtime) as recorder:
            other = runtime.stream([4, 5, 6], SamplingParams(max_tokens=2, ignore_eos=True)).wait()
        assert other.request_id in {track.request_id for track in tracks(recorder.recording)}
    until(lambda: not runtime.busy)
    with Recorder(runtime) as recorder:
        late = runtime.stream([7, 8, 9], SamplingParams(max_tokens=900, ignore_eos=True))
        next(iter(late))
    late.close()
    (track,) = tracks(recorder.recording)
    assert track.end is None
    assert track.segments[-1].ended == recorder.recording.ended


def test_memory_counters_know_pages_that_are_pinned_held_and_cached(
    make_runtime: MakeRuntime,
) -> None:
    runtime = make_runtime()
    runtime.generate([[1, 2] * 16], PARAMS)
    assert runtime.pinned_pages == 0
    assert runtime.pin([1, 2] * 16) == 32
    assert runtime.pinned_pages == 2
    with Recorder(runtime) as recorder:
        runtime.generate([[9] * 40], PARAMS)
    last = recorder.recording.standings[0]
    assert (last.pinned_pages, last.held_pages, last.running) == (2, 3, 1)
    assert last.mapped_bytes > 0
    runtime.unpin([1, 2] * 16)
    assert runtime.pinned_pages == 0


def test_only_who_asks_for_phases_is_why_they_are_recorded(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    events: list[Event] = []
    runtime.add_observer(events.append)
    runtime.generate([[1, 2, 3]], PARAMS)
    assert not any(isinstance(event, StepPhases) for event in events)
    with Recorder(runtime) as recorder:
        runtime.generate([[1, 2, 3]], PARAMS)
    done = len(events)
    runtime.generate([[1, 2, 3]], PARAMS)
    told = [event.number for event in events if isinstance(event, StepPhases)]
    assert told == [step.number for step in recorder.recording.steps]
    assert {e.number for e in events[:done] if isinstance(e, StepDone)} > {*told}
    assert not any(isinstance(event, StepPhases) for event in events[done:])


def test_a_recording_that_is_full_counts_what_it_loses(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    with Recorder(runtime, most=3) as recorder:
        runtime.generate([[1, 2, 3]], PARAMS)
    assert len(recorder.recording.steps) == 3
    assert recorder.recording.lost > 10


def test_the_work_of_steps_is_counted_from_the_shape_of_the_model(
    make_runtime: MakeRuntime,
) -> None:
    runtime = make_runtime(prefix_cache=False)
    with Recorder(runtime) as recorder:
        runtime.generate([[1] * 33], SamplingParams(max_tokens=3, ignore_eos=True))
    work, found = Work.of(runtime), totals(recorder.recording.steps)
    hidden, heads, wide, vocab = 64, 4 * 128, 96, 199
    layer = 4 * hidden * heads + 3 * hidden * wide
    assert work.parameters == 4 * (layer + 2 * hidden)
    assert work.head == vocab * hidden
    assert (found.prompt_tokens, found.answer_tokens) == (33, 2)
    assert work.operations(found) == 2 * (35 * work.parameters + 2 * work.head)
    weights = (work.parameters + work.head) * work.weight_bytes / (work.parameters + work.head)
    tokens = 33 + 34 + 35
    assert work.token_bytes == 2 * 4 * 4 * 128 * 4
    assert work.read_bytes(recorder.recording.steps) == pytest.approx(
        3 * weights + tokens * work.token_bytes
    )
    facts = measured(recorder.recording, work, Limits(1e9, 1e9), 1 << 29)
    assert (facts.requests, facts.preemptions) == (1, 0)
    assert facts.request_seconds >= facts.queued_seconds > 0
