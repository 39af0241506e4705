"""The engine on a device that fails, and that finishes late."""

from pathlib import Path
from typing import Any

import pytest

from kvrt.errors import DeviceError, KvrtError, OutOfMemory
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.spi import Device
from kvrt.stream import Stream
from kvrt.testing.chaos import Chaos, Copies

from .conftest import Break, MakeRuntime, until
from .faulty import Faulty

PROMPTS = [[n + 1] * (20 + 13 * n) for n in range(6)]
PARAMS = SamplingParams(max_tokens=90, ignore_eos=True, n=2, seed=3, temperature=0.7)


Tokens = list[list[tuple[int, ...]]]


def tokens(runtime: Runtime) -> Tokens:
    results = runtime.generate(PROMPTS, PARAMS)
    assert [result.error for result in results] == [None] * len(PROMPTS)
    return [[c.token_ids for c in result.completions] for result in results]


@pytest.fixture(scope="module")
def whole(tiny_lm: Path) -> Tokens:
    """What is said on a device that does neither."""
    with Runtime(tiny_lm, backend="cpu", load_format="dummy", seed=1) as runtime:
        return tokens(runtime)


@pytest.mark.parametrize("call", [2, 3, 4, 6])
def test_a_device_that_runs_out_of_memory_still_answers_everything(
    call: int, make_runtime: MakeRuntime, break_device: Break, whole: Tokens
) -> None:
    fail = {("memory.create", n): OutOfMemory("no more") for n in range(call, 1000)}
    break_device(lambda device: Chaos(device, fail=fail))
    runtime = make_runtime(keep_warm=0)
    if call == 2:  # too little for the longest of them: said, and the others are answered
        results = runtime.generate(PROMPTS, PARAMS)
        assert {result.finish_reason for result in results} <= {"length", "capacity"}
        assert any(result.finish_reason == "capacity" for result in results)
    else:
        assert tokens(runtime) == whole
    runtime.cache.check_integrity()
    # What is held when it runs out; a chunk given back before that was a chunk too many.
    assert runtime.stats().cache.peak_mapped_bytes in [n * (2 << 20) for n in range(1, call)]


def test_one_chunk_that_was_refused_lowers_the_limit_for_a_while(
    make_runtime: MakeRuntime, break_device: Break, whole: Tokens
) -> None:
    """And nobody needs to set it again."""
    faulty: list[Faulty] = []

    def wrap(device: Device) -> Faulty:
        faulty.append(Faulty(device))
        return faulty[-1]

    break_device(wrap)
    runtime = make_runtime(keep_warm=0)
    asked = runtime.stats().cache.limit_bytes
    until(lambda: not runtime.busy)
    faulty[0].refused["memory.create"] = OutOfMemory("no more")
    long = SamplingParams(max_tokens=900, ignore_eos=True)
    first = runtime.stream([1] * 20, long)
    other = runtime.stream([2] * 20, long)
    until(lambda: runtime.stats().cache.limit_bytes < asked)
    assert runtime.stats().cache.asked_bytes == asked
    faulty[0].refused.clear()
    until(lambda: runtime.stats().cache.limit_bytes == asked)
    for stream in (first, other):
        stream.close()
        stream.wait()
    assert tokens(runtime) == whole
    assert runtime.stats().cache.limit_bytes == runtime.stats().cache.asked_bytes == asked


def test_what_was_refused_is_asked_for_again_when_nothing_runs(
    make_runtime: MakeRuntime, break_device: Break, whole: Tokens, caplog: pytest.LogCaptureFixture
) -> None:
    """Else a prompt that needs it would be refused, and no step would ever try."""
    fail = {("memory.create", n): OutOfMemory("no more") for n in (2, 3, 4)}
    break_device(lambda device: Chaos(device, fail=fail))
    runtime = make_runtime(keep_warm=0)
    before, asked = runtime.cache.capacity_tokens, runtime.stats().cache.limit_bytes
    for _ in range(3):
        runtime.generate(PROMPTS, PARAMS)
    assert runtime.cache.capacity_tokens == before
    until(lambda: not runtime.busy and runtime.stats().cache.limit_bytes == asked)
    assert tokens(runtime) == whole
    told = [record for record in caplog.records if "out of memory" in record.getMessage()]
    assert len(told) == 1, "once a minute"


@pytest.mark.parametrize(
    ("copies", "seed"), [("early", 0), *((c, s) for c in ("late", "mixed") for s in range(3))]
)
def test_late_copies_change_no_answer(
    copies: Copies, seed: int, make_runtime: MakeRuntime, break_device: Break, whole: Tokens
) -> None:
    break_device(lambda device: Chaos(device, seed, copies=copies))
    runtime = make_runtime()
    assert tokens(runtime) == whole
    assert runtime.stats().cache.copies > 0, "forks copy their last page"


@pytest.mark.parametrize(
    ("method", "call"),
    [("attention.plan", 1), ("graphs.capture", 1), ("graph.replay", 1), ("graph.replay", 40)],
)
def test_a_device_that_breaks_ends_every_request_with_its_error(
    method: str, call: int, make_runtime: MakeRuntime, break_device: Break
) -> None:
    broken = DeviceError("the device fell off the bus", call="run", code="EIO")
    break_device(lambda device: Chaos(device, fail={(method, call): broken}))
    runtime = make_runtime()
    results = runtime.generate(PROMPTS, PARAMS)
    assert {result.error for result in results} == {broken}
    with pytest.raises(KvrtError, match="fell off the bus"):
        runtime.stream([1])
    runtime.close()


def test_a_device_may_break_while_prompts_are_still_being_handed_in(
    make_runtime: MakeRuntime, break_device: Break, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = DeviceError("the device fell off the bus", call="run", code="EIO")
    break_device(lambda device: Chaos(device, fail={("graph.replay", 40): broken}))
    runtime = make_runtime()
    ask, streams = runtime.stream, list[Stream]()

    def late(*args: Any, **kwargs: Any) -> Stream:
        if streams:
            streams[-1].wait()
        streams.append(ask(*args, **kwargs))
        return streams[-1]

    monkeypatch.setattr(runtime, "stream", late)
    results = runtime.generate([*PROMPTS, "no text"], PARAMS)
    errors = [result.error for result in results]
    answered = errors.index(broken)
    assert errors == [None] * answered + [broken] * (len(PROMPTS) - answered) + [errors[-1]]
    assert answered < len(PROMPTS) - 1, "some were not handed in yet"
    assert errors[-1] is not None
    streams.clear()
    with pytest.raises(KvrtError, match="fell off the bus"):
        runtime.generate(PROMPTS, PARAMS)
    with pytest.raises(KvrtError, match="fell off the bus"):
        runtime.generate([[], *PROMPTS], PARAMS)
