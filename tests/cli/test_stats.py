"""The statistics of `kvrt run`, as lines for people."""

from collections.abc import Iterator
from dataclasses import fields, replace

import pytest
from kvrt_cli.stats import Statistics, block, collect

from kvrt import Runtime, SamplingParams
from kvrt.outputs import Completion, Result, Timings, Usage

NOTHING = dict.fromkeys((field.name for field in fields(Statistics)), 0)
ONE = Statistics(
    **NOTHING
    | {
        "requests": 1,
        "load_s": 1.5,
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_per_s": 100.0,
        "first_token_s": 0.25,
        "total_s": 3.0,
    }
)


def lines(stats: Statistics) -> dict[str, str]:
    return {line[:20].rstrip(): line[21:] for line in block(stats).splitlines()}


def test_one_request_is_told_for_itself() -> None:
    told = lines(ONE)
    assert told["load"] == "1.50 s"
    assert told["prompt"] == "10 tokens, 100.0 tokens/s"
    assert told["time to first token"] == "250.0 ms"
    assert told["generation"] == "5 tokens, too few for a rate"
    assert not told.keys() & {"requests", "KV tiers", "speculation"}


def test_of_many_requests_it_is_said_what_counts_for_all() -> None:
    told = lines(replace(ONE, requests=2, cached_tokens=4, generation_tokens_per_s=2.0))
    assert next(iter(told.items())) == ("requests", "2 in 3.00 s")
    assert told["prompt"] == (
        "10 tokens, 4 of them cached; 6 computed, 100.0 tokens/s over all requests"
    )
    assert told["time to first token"] == "250.0 ms (median)"
    assert told["generation"] == "5 tokens, 2.0 tokens/s over all requests"


def test_tiers_and_guesses_are_told_of_where_there_were_any() -> None:
    for some in ({"host_pages": 1, "host_bytes": 1024}, {"disk_pages": 1}, {"fetched_tokens": 16}):
        told = lines(replace(ONE, **some))
        assert list(told)[-2:] == ["KV tiers", "preemptions"]
        assert told["KV tiers"].endswith(f"{some.get('fetched_tokens', 0)} tokens fetched so far")
    told = lines(replace(ONE, drafted_tokens=8, accepted_tokens=3))
    assert told["speculation"] == "3 of 8 guessed tokens came true"
    told = lines(replace(ONE, expert_uses=800, expert_reads=34))
    assert told["experts"] == "95.8% of 800 were in memory, 34 were read"


def test_memory_is_told_of_with_what_each_number_is_of() -> None:
    told = lines(
        replace(
            ONE, peak_rss_bytes=1 << 20, kv_peak_bytes=2 << 20, kv_end_bytes=3 << 20,
            kv_pooled_bytes=4 << 20, kv_limit_bytes=5 << 20, kv_cached_bytes=6 << 20,
            host_bytes=7 << 20, disk_bytes=8 << 20, disk_pages=1,
        )
    )  # fmt: skip
    assert told["peak memory"] == "1 MiB resident"
    assert told["KV mapped"] == (
        "2 MiB at the peak, 3 MiB at the end (and 4 MiB pooled), 5 MiB allowed"
    )
    assert told["KV cached"].startswith("6 MiB of that")
    assert told["KV tiers"].startswith("7 MiB in host memory, 8 MiB on disk;")


# --- what the numbers are made of ----------------------------------------------------------------


@pytest.fixture(scope="module")
def runtime(plain_model: str) -> Iterator[Runtime]:
    with Runtime(plain_model, backend="cpu", load_format="dummy") as runtime:
        yield runtime


def answered(usage: Usage, timings: Timings) -> Result:
    completions = (Completion(0, "", (1,) * usage.completion_tokens, "length"),)
    return Result("a", (1,) * usage.prompt_tokens, completions, usage, timings)


FIRST = answered(Usage(40, 5, 2, 16, 8, 3), Timings(queued=1.0, first_token=3.0, total=5.0))
SECOND = answered(Usage(10, 7, 1, 0, 4, 2), Timings(queued=0.0, first_token=1.0, total=2.0))
THIRD = answered(Usage(20, 9), Timings(queued=0.0, first_token=2.0, total=6.0))
NONE = answered(Usage(30, 0), Timings(queued=0.0, first_token=0.0, total=0.0))


def test_one_request_has_a_rate_for_its_prompt_and_one_for_what_came_after_its_first_token(
    runtime: Runtime,
) -> None:
    one = collect(runtime, [FIRST], 9.0)
    assert one.prompt_tokens_per_s == (40 - 16) / (3 - 1)
    assert one.generation_tokens_per_s == (5 - 1) / (5 - 3)
    assert (one.first_token_s, one.total_s, one.requests) == (3.0, 9.0, 1)
    none = collect(runtime, [NONE], 9.0)
    assert (none.prompt_tokens_per_s, none.generation_tokens_per_s, none.first_token_s) == (0, 0, 0)


def test_of_many_requests_all_is_added_up_and_rates_are_over_the_whole_time(
    runtime: Runtime,
) -> None:
    many = collect(runtime, [FIRST, NONE, SECOND, THIRD], 2.0)
    assert (many.prompt_tokens, many.cached_tokens, many.completion_tokens) == (100, 16, 21)
    assert many.prompt_tokens_per_s == (100 - 16) / 2.0
    assert many.generation_tokens_per_s == 21 / 2.0
    assert many.first_token_s == 2.0, "the median of those that have one"
    assert (many.preemptions, many.drafted_tokens, many.accepted_tokens) == (3, 12, 5)


def test_memory_is_that_of_the_runtime_when_it_has_settled(runtime: Runtime) -> None:
    results = runtime.generate([[5] * 40], SamplingParams(max_tokens=3))
    found, cache = collect(runtime, results, 1.0), runtime.stats().cache
    assert cache.cached_pages == 2
    assert found.kv_cached_bytes == 2 * cache.page_bytes
    assert (found.kv_end_bytes, found.kv_pooled_bytes) == (cache.mapped_bytes, cache.pooled_bytes)
    assert (found.kv_peak_bytes, found.kv_limit_bytes) == (
        cache.peak_mapped_bytes,
        cache.limit_bytes,
    )
    assert found.load_s == runtime.stats().load_seconds
    assert found.peak_rss_bytes > 1 << 24
    assert (found.host_pages, found.disk_pages, found.fetched_tokens) == (0, 0, 0)
    assert list(found.as_json()) == [field.name for field in fields(Statistics)]
