"""`Runtime.queue`: who waits, in which order, and why."""

import pytest

from kvrt.engine.queue import Queued
from kvrt.errors import KvrtError
from kvrt.sampling import SamplingParams

from .conftest import MakeRuntime, until

LONG = SamplingParams(max_tokens=900, ignore_eos=True)


def test_those_that_wait_are_told_in_their_order_with_the_reason(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(max_running=1, policy="priority")
    assert runtime.queue() == ()
    first = runtime.stream([1, 2, 3], LONG, request_id="first")
    until(lambda: next(first).token_ids is not None)
    streams = [first]
    for name, priority in (("late", 5), ("urgent", -5), ("usual", 0)):
        streams.append(
            runtime.stream([4] * 5, LONG, request_id=name, priority=priority, metadata=(name,))
        )
    until(lambda: [each.why for each in runtime.queue()] == ["places"] * 3)
    found = runtime.queue()
    assert [each.request_id for each in found] == ["urgent", "usual", "late"]
    assert [each.priority for each in found] == [-5, 0, 5]
    assert [each.metadata for each in found] == [("urgent",), ("usual",), ("late",)]
    assert {(each.prompt_tokens, each.generated_tokens, each.preemptions) for each in found} == {
        (5, 0, 0)
    }
    assert all(each.seconds > 0 for each in found)
    assert [each.request_id for each in runtime.queue(most=1)] == ["urgent"]
    for stream in streams:
        stream.close()
    until(lambda: runtime.queue() == ())
    with pytest.raises(KvrtError, match="most"):
        runtime.queue(most=0)


def test_those_whose_pages_were_taken_wait_for_memory(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(memory_limit="9MiB", prefix_cache=False)
    params = SamplingParams(max_tokens=200, ignore_eos=True)
    streams = [runtime.stream([n] * 60, params) for n in range(6)]
    waiting: list[Queued] = []

    def seen() -> bool:
        waiting.extend(each for each in runtime.queue() if each.preemptions)
        return bool(waiting)

    until(seen)
    assert all(each.generated_tokens > 0 and each.why == "memory" for each in waiting)
    for stream in streams:
        stream.wait()
