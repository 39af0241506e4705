"""The cache in formats that quantise: same bytes whatever happens, and refusals by name."""

import random
from pathlib import Path

import pytest

from kvrt.engine.events import StepDone
from kvrt.errors import ConfigError
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.spi import KVFormat

from .conftest import MakeRuntime

PARAMS = SamplingParams(max_tokens=40, ignore_eos=True)
CHUNK = 2 << 20
FORMATS: list[KVFormat] = ["int8", "int4"]


def prompt(length: int) -> list[int]:
    rng = random.Random(length)
    return [rng.randrange(199) for _ in range(length)]


PROMPTS = [prompt(length) for length in (1, 15, 16, 33, 64, 130, 200, 257)]


def answers(runtime: Runtime, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    return [result.token_ids for result in runtime.generate(prompts, PARAMS)]


@pytest.mark.promise("P15")
@pytest.mark.parametrize("kv", FORMATS)
def test_alone_in_a_batch_in_chunks_and_preempted_the_bytes_are_the_same(
    make_runtime: MakeRuntime, kv: KVFormat
) -> None:
    runtime = make_runtime(kv_cache_dtype=kv, prefix_cache=False)
    alone = [answers(runtime, [one])[0] for one in PROMPTS]
    assert answers(runtime, PROMPTS) == alone
    for chunk, page_size in ((1, 16), (7, 8), (64, 64)):
        other = make_runtime(
            kv_cache_dtype=kv, max_batch_tokens=chunk, page_size=page_size, prefix_cache=False
        )
        assert answers(other, PROMPTS) == alone
        other.close()


@pytest.mark.parametrize("kv", FORMATS)
def test_a_page_that_another_request_filled_is_reused(
    make_runtime: MakeRuntime, kv: KVFormat
) -> None:
    runtime = make_runtime(kv_cache_dtype=kv)
    first = answers(runtime, PROMPTS[-1:])
    again = runtime.generate(PROMPTS[-1:], PARAMS)[0]
    assert again.usage.cached_tokens > 200
    assert [again.token_ids] == first


def test_the_formats_hold_as_many_more_tokens_as_they_say(make_runtime: MakeRuntime) -> None:
    capacity = {}
    for kv in ("float32", *FORMATS):
        capacity[kv] = make_runtime(kv_cache_dtype=kv).cache.page_bytes
    assert capacity["float32"] / capacity["int8"] > 3.5
    assert capacity["float32"] / capacity["int4"] > 6


def test_a_device_that_does_not_keep_a_format_says_which_it_keeps(tiny_lm: Path) -> None:
    with pytest.raises(ConfigError, match="null cannot keep keys and values in int8") as caught:
        Runtime(tiny_lm, backend="null", load_format="dummy", kv_cache_dtype="int8")
    assert caught.value.fix == "set kv_cache_dtype to one of float32, bfloat16, float16"


def test_fp8_is_refused_where_a_device_does_not_have_it(tiny_lm: Path) -> None:
    with pytest.raises(ConfigError, match="cpu cannot keep keys and values in fp8") as caught:
        Runtime(tiny_lm, backend="cpu", load_format="dummy", kv_cache_dtype="fp8")
    assert "int8" in caught.value.fix


def test_an_unknown_format_is_refused_with_the_known_ones(tiny_lm: Path) -> None:
    with pytest.raises(ConfigError, match="kv_cache_dtype is 'int3'") as caught:
        Runtime(tiny_lm, kv_cache_dtype="int3")
    assert "int8, fp8, int4" in caught.value.fix


@pytest.mark.parametrize(
    ("asked", "room", "taken", "says"),
    [
        ("fit:8", 40, "float32", None),
        ("fit:8", 20, "bfloat16", "in float32, 8 texts of 256 tokens would take"),
        ("fit:8", 12, "int8", "in float32, 8 texts of 256 tokens would take"),
        ("fit:8", 8, "int8", "even so"),
        ("fit:8:int4", 8, "int4", "in float32, 8 texts of 256 tokens would take"),
        ("fit:8:bfloat16", 12, "bfloat16", "even so"),
        ("fit", 8, "float32", None),
        ("auto", 8, "float32", None),
    ],
)
def test_the_most_exact_format_is_taken_in_which_what_is_asked_for_fits(
    asked: str,
    room: int,
    taken: str,
    says: str | None,
    make_runtime: MakeRuntime,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And none that is less exact than allowed, whatever fits; then that is said."""
    weights = make_runtime(prefix_cache=False).model.weight_bytes
    runtime = make_runtime(
        kv_cache_dtype=asked, max_model_len=256, memory_limit=weights + (room << 20)
    )
    assert {layout.format for layout in runtime.cache.layouts} == {taken}
    said = [record.getMessage() for record in caplog.records]
    if says is None:
        assert said == []
    else:
        assert len(said) == 1
        assert f"kept in {taken}" in said[0]
        assert says in said[0]


def test_what_was_to_fit_runs_together(make_runtime: MakeRuntime) -> None:
    weights = make_runtime(prefix_cache=False).model.weight_bytes
    together: dict[str, list[int]] = {"fit:8": [], "bfloat16": []}
    for kv, counts in together.items():
        runtime = make_runtime(
            kv_cache_dtype=kv,
            max_model_len=256,
            memory_limit=weights + (12 << 20),
            prefix_cache=False,
        )

        def observe(event: object, counts: list[int] = counts) -> None:
            if isinstance(event, StepDone):
                counts.append(event.running)

        runtime.add_observer(observe)
        results = runtime.generate(
            [prompt(length) for length in range(216, 224)],
            SamplingParams(max_tokens=32, ignore_eos=True),
        )
        assert [(result.error, result.usage.preemptions) for result in results] == [(None, 0)] * 8
    assert max(together["fit:8"]) == 8 > max(together["bfloat16"])


@pytest.mark.parametrize(
    "asked", ["fit:", "fit:0", "fit:int3", "fit:2:float32:1", "fits", "fit:-1"]
)
def test_what_is_to_fit_is_checked(tiny_lm: Path, asked: str) -> None:
    with pytest.raises(ConfigError, match="kv_cache_dtype is 'fit") as caught:
        Runtime(tiny_lm, kv_cache_dtype=asked)
    assert "fit:N:FORMAT" in caught.value.fix


def test_more_texts_than_run_together_do_not_fit(tiny_lm: Path) -> None:
    with pytest.raises(ConfigError, match="9 texts at once, and max_running is 8"):
        Runtime(tiny_lm, kv_cache_dtype="fit:9", max_running=8)
    with pytest.raises(ConfigError, match="kv_cache_dtype fit is not for a model that several"):
        Runtime(tiny_lm, kv_cache_dtype="fit", tensor_parallel=2)
