"""A whole runtime on an emulated GPU, and what becomes of it when a call of the driver fails."""

import json
from collections import Counter
from pathlib import Path

import pytest

from kvrt.errors import DeviceError, KvrtError
from kvrt.outputs import Result
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from tests.emulator.inside.conftest import MIB
from tests.emulator.inside.names import INVALID, LAUNCH_FAILED, OUT_OF_MEMORY
from tests.emulator.library import Emulator

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
"""Wide heads: a page of 16 tokens takes 128 KiB, so a chunk is 256 tokens, and soon full."""

STEPS = 200
PROMPTS = [[n + 1] * (3 + 5 * n) for n in (0, 3)]
SAMPLED = SamplingParams(max_tokens=STEPS, ignore_eos=True, n=2, seed=3, temperature=0.7)
GREEDY = SamplingParams(max_tokens=STEPS, ignore_eos=True, temperature=0.0)

Tokens = list[list[tuple[int, ...]]]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def make(model: Path, backend: str) -> Runtime:
    # Less than the sequences need in the end, so that some are preempted and memory is recycled.
    return Runtime(
        model, backend=backend, load_format="dummy", seed=1, memory_limit=7 * MIB,
        max_batch_tokens=64, keep_warm=2 * MIB,
    )  # fmt: skip


def tokens(results: list[Result]) -> Tokens:
    assert [result.error for result in results] == [None] * len(results)
    return [[c.token_ids for c in result.completions] for result in results]


def run(model: Path, backend: str, params: SamplingParams) -> tuple[list[Result], int]:
    """Answer all prompts, close, and close the device again if closing it failed."""
    runtime = make(model, backend)
    try:
        return runtime.generate(PROMPTS, params), runtime.stats().steps
    finally:
        runtime.close()
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


def fail_each(model: Path, emulator: Emulator, numbers: list[int], right: Tokens) -> Counter[str]:
    """Run once for each of those calls, which then fails. Returns how the runs ended."""
    ends: Counter[str] = Counter()
    for number in numbers:
        emulator.reset()
        status = OUT_OF_MEMORY if number % 2 else INVALID
        emulator.fail(number, status)
        try:
            results, _ = run(model, emulator.name, SAMPLED)
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


def test_tokens_are_those_of_the_cpu_backend(model: Path, vendor: str) -> None:
    here, steps = run(model, vendor, GREEDY)
    there, _ = run(model, "cpu", GREEDY)
    assert steps >= STEPS
    assert tokens(here) == tokens(there)


def test_whichever_call_fails_nothing_is_left_and_answers_are_right_or_errors(
    model: Path, emulator: Emulator
) -> None:
    results, steps = run(model, emulator.name, SAMPLED)
    assert steps >= STEPS
    trace = emulator.trace()
    ends = fail_each(model, emulator, chosen(trace, most=2), tokens(results))
    assert ends["right"] > 0
    assert ends["DeviceError"] > 0


@pytest.mark.extra
@pytest.mark.timeout(3600)
def test_every_single_call_may_fail(model: Path, emulator: Emulator) -> None:
    results, _ = run(model, emulator.name, SAMPLED)
    numbers = list(range(1, len(emulator.trace()) + 1))
    fail_each(model, emulator, numbers, tokens(results))


def test_a_device_that_is_lost_ends_every_request_and_the_runtime_cleanly(
    model: Path, emulator: Emulator
) -> None:
    runtime = make(model, emulator.name)
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
