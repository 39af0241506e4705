"""`Runtime.sleep` and `wake`: memory goes and comes back, and nobody who asks can tell."""

import time
from pathlib import Path
from typing import Any

import pytest

from kvrt import CapacityError, ConfigError, KvrtError, ModelError, Runtime, SamplingParams, Share
from kvrt.testing.host import physical_bytes
from kvrt.units import MIB
from tests.bench.peers.shapes import make_checkpoint

from .conftest import MakeRuntime

PROMPTS = [[n, 7, n % 5] * 15 for n in range(1, 7)]
LONG = SamplingParams(max_tokens=60, ignore_eos=True)
SHORT = SamplingParams(max_tokens=4, ignore_eos=True)
CHUNK = 2 * MIB

LARGE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256,
    "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 16384, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048, "rope_theta": 10000.0, "tie_word_embeddings": True,
    "hidden_act": "silu", "torch_dtype": "float32",
}  # fmt: skip
"""32 MiB of weights."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(LARGE, tmp_path_factory.mktemp("large"))


def tokens(runtime: Runtime, params: SamplingParams = LONG) -> list[object]:
    results = runtime.generate(PROMPTS, params)
    assert [result.error for result in results] == [None] * len(PROMPTS)
    return [[one.token_ids for one in result.completions] for result in results]


def test_the_memory_goes_by_the_systems_count_and_answers_stay_the_same(large: Path) -> None:
    with Runtime(large, memory_limit="128MiB", prefix_cache_ttl=1e9) as runtime:
        before = tokens(runtime)
        weights = runtime.stats().weight_bytes
        for level, gone in ((1, 0), (2, weights)):
            held, cached = physical_bytes(), runtime.stats().cache.mapped_bytes
            assert cached > CHUNK
            runtime.sleep(level)
            assert runtime.asleep == level
            assert runtime.stats().cache.mapped_bytes + runtime.stats().cache.pooled_bytes == CHUNK
            assert held - physical_bytes() >= gone + cached - CHUNK - MIB
            runtime.wake()
            assert runtime.asleep == 0
            assert tokens(runtime) == before
            assert abs(physical_bytes() - held) < 2 * CHUNK


@pytest.mark.parametrize(
    "params",
    [
        LONG,
        SamplingParams(max_tokens=40, n=3, temperature=1.0, seed=5, ignore_eos=True),
        SamplingParams(max_tokens=40, beam_width=3, ignore_eos=True),
    ],
    ids=["one", "several", "beams"],
)
def test_requests_that_run_wait_and_go_on_with_the_same_text(
    make_runtime: MakeRuntime, params: SamplingParams
) -> None:
    runtime = make_runtime(memory_limit="64MiB")
    expected = tokens(runtime, params)
    streams = [runtime.stream(prompt, params) for prompt in PROMPTS]
    while runtime.busy:
        runtime.sleep(2)
        steps = runtime.stats().steps
        time.sleep(0.002)
        assert runtime.stats().steps == steps, "it takes none while it sleeps"
        runtime.wake()
        time.sleep(0.02)
    results = [stream.wait() for stream in streams]
    assert [[one.token_ids for one in result.completions] for result in results] == expected


def test_a_request_wakes_it_or_is_refused_as_was_asked_for(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    before = tokens(runtime)
    runtime.sleep(2)
    assert tokens(runtime) == before
    assert runtime.asleep == 0
    runtime.sleep(1, wake_on_request=False)
    with pytest.raises(KvrtError, match="asleep") as caught:
        runtime.stream(PROMPTS[0], LONG)
    assert "wake" in caught.value.fix
    assert runtime.asleep == 1
    runtime.wake()
    runtime.wake()
    assert tokens(runtime) == before


def test_it_sleeps_as_deep_as_the_deepest_and_closes_in_its_sleep(
    make_runtime: MakeRuntime,
) -> None:
    runtime = make_runtime()
    runtime.sleep(1)
    runtime.sleep(2)
    runtime.sleep(1)
    assert runtime.asleep == 2
    for level in (0, 3, True, "1"):
        with pytest.raises(ConfigError, match="level"):
            runtime.sleep(level)  # type: ignore[arg-type]
    runtime.close()
    with pytest.raises(KvrtError, match="closed"):
        runtime.wake()


def test_what_was_cached_comes_back_from_host_memory(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(offload="host:64MiB", preemption="move")
    prompt = [*range(1, 100)]
    runtime.generate([prompt], LONG)
    runtime.sleep(1)
    assert runtime.stats().cache.cached_pages == 0
    (result,) = runtime.generate([prompt], LONG)
    assert result.usage.cached_tokens > 64


def test_a_model_whose_files_are_gone_sleeps_on_and_says_why(large: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in large.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    with Runtime(folder, memory_limit="96MiB") as runtime:
        before = tokens(runtime)
        runtime.sleep(2)
        (folder / "model.safetensors").rename(folder / "away")
        with pytest.raises(ModelError, match="No such file"):
            runtime.wake()
        result = runtime.generate([PROMPTS[0]], LONG)[0]
        assert isinstance(result.error, ModelError)
        assert runtime.asleep == 2
        (folder / "away").rename(folder / "model.safetensors")
        assert tokens(runtime) == before


def test_models_in_turn_share_the_memory_of_one(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVRT_SHARE_DIR", str(tmp_path))
    monkeypatch.setattr("kvrt.engine.sleeping.LEASE_S", 0.2)
    share = Share(name="one", size="56MiB")
    runtimes: list[Runtime] = []
    try:
        for _ in range(3):
            runtimes.append(Runtime(large, share=share, keep_warm=0))
            expected = tokens(runtimes[-1], SHORT)
            runtimes[-1].sleep(2)
        asleep = physical_bytes()
        for runtime in runtimes * 2:
            assert tokens(runtime, SHORT) == expected
            assert physical_bytes() - asleep > 28 * MIB
            runtime.sleep(2)
            assert physical_bytes() - asleep < 2 * CHUNK, "it goes back after each"
        runtimes[0].wake()
        with pytest.raises(CapacityError, match="holds"):
            runtimes[1].wake()
        assert isinstance(runtimes[2].generate([PROMPTS[0]])[0].error, CapacityError)
        assert tokens(runtimes[0], SHORT) == expected
    finally:
        for runtime in runtimes:
            runtime.close()
