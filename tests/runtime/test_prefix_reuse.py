"""Requests begin with the pages that others have computed, and say what they would say anyway."""

import random

import pytest

import kvrt.kv.tiers.names
from kvrt.errors import RequestError
from kvrt.outputs import Result
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.testing.chaos import Chaos

from .conftest import Break, MakeRuntime, until

PAGE = 16
GREEDY = SamplingParams(max_tokens=8, ignore_eos=True)
CHUNK = 2 << 20
PREFIX = [(7 * i) % 199 for i in range(5 * PAGE)]


def ask(runtime: Runtime, prompt: list[int], **options: object) -> Result:
    return runtime.stream(prompt, GREEDY, **options).wait()  # type: ignore[arg-type]


@pytest.fixture
def cold(make_runtime: MakeRuntime) -> Runtime:
    """A runtime that reuses nothing."""
    return make_runtime(prefix_cache=False)


def test_the_same_prompt_again_computes_only_its_last_tokens(
    make_runtime: MakeRuntime, cold: Runtime
) -> None:
    runtime = make_runtime()
    first, again = (ask(runtime, [*PREFIX, 1, 2, 3]) for _ in range(2))
    assert first.token_ids == again.token_ids == ask(cold, [*PREFIX, 1, 2, 3]).token_ids
    assert (first.usage.cached_tokens, again.usage.cached_tokens) == (0, 5 * PAGE)
    stats = runtime.stats().reuse
    assert (stats.prompt_tokens, stats.cached_tokens) == (2 * len(PREFIX) + 6, 5 * PAGE)


def test_a_prompt_that_is_all_cached_still_computes_its_last_page(
    make_runtime: MakeRuntime, cold: Runtime
) -> None:
    """The logits of the last token are what the answer begins with."""
    runtime = make_runtime()
    results = [ask(runtime, PREFIX) for _ in range(3)]
    assert [r.usage.cached_tokens for r in results] == [0, 4 * PAGE, 4 * PAGE]
    assert {r.token_ids for r in results} == {ask(cold, PREFIX).token_ids}


def test_an_answer_is_part_of_the_next_prompt_of_a_conversation(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    said = runtime.stream(PREFIX, params).wait().token_ids
    following = [*PREFIX, *said, 5]
    assert ask(runtime, following).usage.cached_tokens == (len(following) - 2) // PAGE * PAGE


def test_sixteen_that_come_together_compute_their_prefix_once(
    make_runtime: MakeRuntime, cold: Runtime
) -> None:
    runtime = make_runtime(max_batch_tokens=64)
    prompts = [[*PREFIX, 100 + i, 3] for i in range(16)]
    results = runtime.generate(prompts, GREEDY)
    assert sorted(r.usage.cached_tokens for r in results) == [0] + 15 * [5 * PAGE]
    assert [r.token_ids for r in results] == [r.token_ids for r in cold.generate(prompts, GREEDY)]


def test_prefixes_that_part_share_what_they_have_in_common(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    ask(runtime, PREFIX)
    other = PREFIX[: 3 * PAGE] + [1] * 3 * PAGE
    assert ask(runtime, other).usage.cached_tokens == 3 * PAGE
    assert ask(runtime, other).usage.cached_tokens == 5 * PAGE
    assert ask(runtime, [9, *PREFIX]).usage.cached_tokens == 0, "it depends on all tokens before"


@pytest.mark.promise("P30")
def test_tenants_share_nothing_and_each_has_its_own(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    seen = [
        ask(runtime, PREFIX, cache_salt=salt).usage.cached_tokens
        for salt in ("", "a", "b", "a", "b", "")
    ]
    assert seen == [0, 0, 0, 4 * PAGE, 4 * PAGE, 4 * PAGE]


@pytest.mark.promise("P30")
@pytest.mark.parametrize("salt", ["x" * 257, "a\nb", "\0", "\u202e", 7, None, b"a"])
def test_a_salt_that_is_no_name_is_refused(salt: object, make_runtime: MakeRuntime) -> None:
    with pytest.raises(RequestError, match="cache_salt"):
        make_runtime().stream(PREFIX, GREEDY, cache_salt=salt)  # type: ignore[arg-type]


def test_a_private_request_takes_no_pages_and_leaves_none(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    for _ in range(2):
        assert ask(runtime, PREFIX, private=True).usage.cached_tokens == 0
    assert ask(runtime, PREFIX).usage.cached_tokens == 0
    assert ask(runtime, PREFIX, private=True).usage.cached_tokens == 0
    assert ask(runtime, PREFIX).usage.cached_tokens == 4 * PAGE


def test_a_batch_has_a_tenant_or_is_private_as_a_whole(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()

    def cached(**options: object) -> list[int]:
        results = runtime.generate([PREFIX, PREFIX], GREEDY, **options)  # type: ignore[arg-type]
        return sorted(result.usage.cached_tokens for result in results)

    assert cached(private=True) == [0, 0]
    assert cached(cache_salt="a") == [0, 4 * PAGE]
    assert cached(cache_salt="a") == [4 * PAGE, 4 * PAGE]
    assert cached() == [0, 4 * PAGE]


def test_prompt_logprobs_are_those_of_a_computed_prompt(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    params = SamplingParams(max_tokens=2, prompt_logprobs=1)
    first, again = (runtime.stream(PREFIX, params).wait() for _ in range(2))
    assert first.prompt_logprobs == again.prompt_logprobs
    assert len(again.prompt_logprobs or ()) == len(PREFIX) - 1


@pytest.mark.promise("P31")
def test_keys_that_collide_give_no_wrong_answer(
    make_runtime: MakeRuntime, cold: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each key only eight bits are left."""
    real = kvrt.kv.tiers.names.page_key
    monkeypatch.setattr(
        "kvrt.kv.index.reuse.page_key",
        lambda parent, tokens, mark=b"": real(parent, tokens)[:1] + bytes(31),
    )
    runtime = make_runtime()
    rng = random.Random(0)
    prompts = [[rng.randrange(3) for _ in range(rng.randint(1, 90))] for _ in range(60)]
    prompts += [[*prompt, 1] for prompt in prompts]
    answers = [r.token_ids for r in runtime.generate(prompts, GREEDY)]
    assert answers == [r.token_ids for r in cold.generate(prompts, GREEDY)]
    assert runtime.stats().reuse.cached_tokens > 0


@pytest.mark.promise("P15")
@pytest.mark.parametrize("policy", ["lru", "lfu", "cost"])
@pytest.mark.parametrize("page_size", [4, 16])
def test_under_pressure_every_answer_is_that_of_a_cold_start(
    policy: str, page_size: int, make_runtime: MakeRuntime, cold: Runtime, break_device: Break
) -> None:
    """Prompts that share beginnings of all lengths, in a pool of a quarter of what they need."""
    rng = random.Random(policy)
    stems = [[rng.randrange(199) for _ in range(120)] for _ in range(3)]
    prompts = [
        rng.choice(stems)[: rng.randint(1, 120)] + [rng.randrange(9)] * rng.randint(1, 20)
        for _ in range(60)
    ]
    right = [r.token_ids for r in cold.generate(prompts, GREEDY)]
    break_device(lambda device: Chaos(device, seed=page_size))
    runtime = make_runtime(
        prefix_cache_policy=policy, page_size=page_size, max_batch_tokens=48, max_running=8
    )
    runtime.set_memory_limit(runtime.model.weight_bytes + 3 * CHUNK)
    results = runtime.generate(prompts, GREEDY)
    assert [r.token_ids for r in results] == right
    assert sum(r.usage.cached_tokens for r in results) > 500
    assert runtime.stats().reuse.dropped_pages > 20
    assert runtime.stats().cache.used_pages == 0


def test_memory_of_cached_pages_goes_where_it_is_needed(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    runtime.set_memory_limit(runtime.model.weight_bytes + 4 * CHUNK)
    for n in range(12):
        result = ask(runtime, [n] * 300)
        assert result.error is None
        assert result.usage.preemptions == 0
    assert 16 <= runtime.stats().cache.cached_pages <= 31


@pytest.mark.promise("P4")
def test_a_lower_limit_takes_cached_pages_at_once(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(keep_warm=0)
    runtime.generate([[n] * 100 for n in range(10)], GREEDY)
    assert runtime.stats().cache.mapped_bytes > 4 * CHUNK
    runtime.set_memory_limit(runtime.model.weight_bytes + 2 * CHUNK)
    until(lambda: runtime.stats().cache.mapped_bytes <= 2 * CHUNK)
    assert runtime.stats().cache.cached_pages > 0


@pytest.mark.promise("P4")
def test_what_nobody_used_for_long_is_given_back_while_nothing_runs(
    make_runtime: MakeRuntime,
) -> None:
    runtime = make_runtime(keep_warm=0, prefix_cache_ttl=1.0)
    ask(runtime, PREFIX)
    assert runtime.stats().cache.cached_pages == 5
    until(lambda: runtime.stats().cache.cached_pages == 0)
    until(lambda: runtime.stats().cache.mapped_bytes <= CHUNK)
    assert ask(runtime, PREFIX).usage.cached_tokens == 0


def test_long_prompts_of_one_tenant_neither_hold_up_another_nor_push_out_its_pages(
    make_runtime: MakeRuntime,
) -> None:
    runtime = make_runtime(memory_limit="64MiB", max_running=4)
    mine = [*PREFIX, 1, 2, 3]
    assert ask(runtime, mine, cache_salt="small").usage.cached_tokens == 0
    streams = [runtime.stream([n, *range(100)] * 3, GREEDY, cache_salt="large") for n in range(40)]
    answered = ask(runtime, mine, cache_salt="small")
    assert answered.usage.cached_tokens == len(PREFIX)
    assert runtime.queue(), "most of the others wait still"
    for stream in streams:
        stream.wait()
    assert runtime.stats().reuse.dropped_pages > 100, "there was no room for all"
    assert ask(runtime, mine, cache_salt="small").usage.cached_tokens == len(PREFIX)
