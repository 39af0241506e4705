"""The cache in formats that quantise: same bytes whatever happens, and refusals by name."""

import random
from pathlib import Path

import pytest

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
