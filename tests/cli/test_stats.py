"""The statistics of `kvrt run`, as lines for people."""

from dataclasses import fields, replace

from kvrt_cli.stats import Statistics, block

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
