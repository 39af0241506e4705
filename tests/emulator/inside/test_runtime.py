"""A whole runtime on an emulated GPU, and what becomes of it when a call of the driver fails."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from kvrt.errors import DeviceError, KvrtError
from kvrt.outputs import Result
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from tests.emulator.inside.conftest import CONFIG, MIB, make_model
from tests.emulator.inside.names import INVALID, LAUNCH_FAILED, OUT_OF_MEMORY
from tests.emulator.library import Emulator

WIDE = {
    **CONFIG,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 256,
}
"""A page of 16 tokens takes 512 KiB, so a chunk is 64 tokens, and soon full."""

STEPS = 50
PROMPTS = [[n + 1] * (3 + 5 * n) for n in (0, 3)]
SAMPLED = SamplingParams(max_tokens=STEPS, ignore_eos=True, n=2, seed=3, temperature=0.7)
LONG = replace(SAMPLED, max_tokens=200)
ROOM_FOR_LONG = 24 * MIB
GREEDY = SamplingParams(max_tokens=STEPS, ignore_eos=True, temperature=0.0)

Tokens = list[list[tuple[int, ...]]]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("wide"), WIDE)


@pytest.fixture(autouse=True)
def _all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Admitted without a thought of what comes, so that pages run out."""
    monkeypatch.setattr("kvrt.sched.room.LOOKAHEAD_TOKENS", 0)


def make(model: Path, backend: str, **options: object) -> Runtime:
    # Less than the sequences need in the end, so that some are preempted and memory is recycled.
    chosen = {"memory_limit": 9 * MIB, **options}
    return Runtime(
        model, backend=backend, load_format="dummy", seed=1, max_batch_tokens=64,
        keep_warm=2 * MIB, **chosen,
    )  # fmt: skip


def tokens(results: list[Result]) -> Tokens:
    assert [result.error for result in results] == [None] * len(results)
    return [[c.token_ids for c in result.completions] for result in results]


def run(
    model: Path, backend: str, params: SamplingParams, **options: object
) -> tuple[list[Result], int]:
    """Answer all prompts, close, and close the device again if closing it failed."""
    runtime = make(model, backend, **options)
    try:
        return runtime.generate(PROMPTS, params), runtime.stats().steps
    finally:
        try:
            runtime.close()
        finally:
            runtime.device.close()


def chosen(trace: list[str], most: int) -> list[int]:
    """Numbers of calls, from 1: every function's first, some between, and its last."""
    places: dict[str, list[int]] = {}
    for number, line in enumerate(trace, start=1):
        places.setdefault(line.partition("(")[0], []).append(number)
    numbers: set[int] = set()
    for found in places.values():
        count = min(most, len(found))
        numbers.update(found[n * (len(found) - 1) // max(1, count - 1)] for n in range(count))
    return sorted(numbers)


def fail_each(
    wide: Path,
    emulator: Emulator,
    numbers: list[int],
    right: Tokens,
    params: SamplingParams = SAMPLED,
    **options: object,
) -> Counter[str]:
    """Run once for each of those calls, which then fails. Returns how the runs ended."""
    ends: Counter[str] = Counter()
    for number in numbers:
        emulator.reset()
        status = OUT_OF_MEMORY if number % 2 else INVALID
        emulator.fail(number, status)
        try:
            results, _ = run(wide, emulator.name, params, **options)
        except KvrtError as error:
            ends[type(error).__name__] += 1
        else:
            for result, wanted in zip(results, right, strict=True):
                if result.error is None:
                    assert [c.token_ids for c in result.completions] == wanted, number
                else:
                    assert isinstance(result.error, KvrtError), number
            failed = {type(r.error).__name__ for r in results if r.error is not None}
            ends[failed.pop() if failed else "right"] += 1
        assert emulator.left() == {}, f"call {number}, status {status}: {emulator.trace()[-40:]}"
    return ends


def test_tokens_are_those_of_the_cpu_backend(wide: Path, vendor: str) -> None:
    here, steps = run(wide, vendor, GREEDY)
    there, _ = run(wide, "cpu", GREEDY)
    assert steps >= STEPS
    assert tokens(here) == tokens(there)


def test_a_format_that_only_gpus_keep_survives_preemption(wide: Path, vendor: str) -> None:
    """Its pages have a quarter of the bytes, so a limit of two chunks is as tight as nine."""
    answers = []
    for chunks in (3, 32):
        runtime = make(wide, vendor, kv_cache_dtype="fp8", memory_limit=chunks * 2 * MIB)
        results = runtime.generate(PROMPTS, SAMPLED)
        answers.append(tokens(results))
        assert any(result.usage.preemptions for result in results) == (chunks == 3)
        runtime.close()
        runtime.device.close()
    assert answers[0] == answers[1]


def test_whichever_call_fails_nothing_is_left_and_answers_are_right_or_errors(
    wide: Path, emulator: Emulator
) -> None:
    results, steps = run(wide, emulator.name, SAMPLED)
    assert steps >= STEPS
    assert any(result.usage.preemptions for result in results)
    trace = emulator.trace()
    ends = fail_each(wide, emulator, chosen(trace, most=2), tokens(results))
    assert ends["right"] > 0
    assert ends["DeviceError"] > 0


@pytest.mark.extra
@pytest.mark.timeout(3600)
def test_every_single_call_of_200_steps_may_fail(wide: Path, emulator: Emulator) -> None:
    results, steps = run(wide, emulator.name, LONG, memory_limit=ROOM_FOR_LONG)
    assert steps >= 200
    assert any(result.usage.preemptions for result in results)
    numbers = list(range(1, len(emulator.trace()) + 1))
    fail_each(wide, emulator, numbers, tokens(results), LONG, memory_limit=ROOM_FOR_LONG)


def test_a_device_that_is_lost_ends_every_request_and_the_runtime_cleanly(
    wide: Path, emulator: Emulator
) -> None:
    runtime = make(wide, emulator.name)
    stream = runtime.stream(PROMPTS[0], GREEDY)
    for _ in range(5):
        next(stream)
    emulator.lose(LAUNCH_FAILED)
    result = stream.wait()
    assert isinstance(result.error, DeviceError)
    assert "LAUNCH_FAILED" in str(result.error) or "LaunchFailure" in str(result.error)
    assert "another process" in result.error.fix
    with pytest.raises(DeviceError):
        runtime.stream(PROMPTS[0], GREEDY)
    runtime.close()
    emulator.lose(0)
    runtime.device.close()
