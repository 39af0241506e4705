"""What may not be said, what is said more or less, and prompts that are only scored."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvrt.errors import RequestError
from kvrt.outputs import Completion
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

from .conftest import MakeRuntime, pages_in_use, until

CODE = "a = 1\nb = 2\n" * 8
"""Goes on as guessed, where guesses are made."""
HEAD = "def add(a, b):"
DRAWN: dict[str, Any] = {"temperature": 0.9, "seed": 4}

Say = Callable[..., Completion]


@pytest.fixture(scope="module")
def plain() -> Iterator[Runtime]:
    with Runtime("tiny", backend="cpu", memory_limit="64MiB") as runtime:
        yield runtime


@pytest.fixture(scope="module")
def say(plain: Runtime) -> Iterator[Say]:
    """An answer to a prompt, which is the same with guesses at its tokens and without."""
    with Runtime("tiny", backend="cpu", memory_limit="64MiB", speculate="ngram:6") as guessing:

        def say(prompt: str, **params: Any) -> Completion:
            wish = SamplingParams(**{"max_tokens": 32, "ignore_eos": True, **params})
            results = [runtime.generate(prompt, wish)[0] for runtime in (plain, guessing)]
            assert results[0].error is None
            assert results[0].completions == results[1].completions
            return results[0].completions[0]

        yield say
        assert guessing.stats().speculation.accepted_tokens > 0


@pytest.mark.parametrize("prompt", [CODE, HEAD])
def test_in_place_of_a_banned_token_stands_the_next_best(say: Say, prompt: str) -> None:
    free = say(prompt, logprobs=2)
    assert free.logprobs is not None
    banned = free.token_ids[6]
    first = free.token_ids.index(banned)
    said = say(prompt, logit_bias={banned: -100}).token_ids
    assert banned not in said
    assert said[: first + 1] == (*free.token_ids[:first], free.logprobs[first].top[1][0])


def test_a_bias_can_make_tokens_the_only_ones(say: Say) -> None:
    assert say(CODE, logit_bias={77: 100}).token_ids == (77,) * 32
    assert say(CODE, logit_bias={"77": 100}).token_ids == (77,) * 32, "the keys of JSON are texts"
    assert set(say(CODE, logit_bias=[(77, 100), (78, 100)], **DRAWN).token_ids) == {77, 78}
    assert say(CODE, logit_bias={77: 0}) == say(CODE)


@pytest.mark.parametrize("how", [{}, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("words", [["list"], [" of"], ["list of a", "Return"]], ids=repr)
def test_a_bad_word_is_not_said(say: Say, words: list[str], how: dict[str, Any]) -> None:
    said = say(HEAD, bad_words=words, **how).text
    assert not any(word in said for word in words)
    assert all(word in say(HEAD).text for word in words)


def test_an_end_token_comes_no_earlier_than_it_may(say: Say) -> None:
    end = say(HEAD).token_ids[3]
    assert len(say(HEAD, stop_token_ids=[end]).token_ids) <= 4
    for least in (4, 5, 20):
        said = say(HEAD, stop_token_ids=[end], min_tokens=least)
        assert end not in said.token_ids[:least]
        assert said.finish_reason == "length" or said.token_ids.index(end) >= least


def test_a_stop_string_is_not_looked_for_too_early(say: Say) -> None:
    assert say(HEAD, stop=["list"]).text.count("list") == 0
    said = say(HEAD, stop=["list"], min_tokens=16)
    assert said.finish_reason == "stop"
    assert len(said.token_ids) >= 16
    assert say(HEAD).text.startswith(f"{said.text}list")
    assert "list" in said.text


def test_each_completion_keeps_to_it(plain: Runtime) -> None:
    wish = SamplingParams(max_tokens=20, n=4, logit_bias={199: -100}, bad_words=["or"], **DRAWN)
    for completion in plain.generate(HEAD, wish)[0].completions:
        assert 199 not in completion.token_ids
        assert " or" not in completion.text


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 0, "prompt_logprobs": 1, "n": 2}, "max_tokens"),
        ({"max_tokens": 0, "prompt_logprobs": 1, "beam_width": 2}, "max_tokens"),
        ({"beam_width": 2, "min_tokens": 1}, "min_tokens"),
        ({"beam_width": 2, "logit_bias": {1: 1}}, "logit_bias"),
        ({"beam_width": 2, "bad_words": ["x"]}, "bad_words"),
        ({"logit_bias": {1: 101}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {-1: 1}}, "logit_bias"),
        ({"logit_bias": [1, 2]}, "logit_bias"),
        ({"logit_bias": dict.fromkeys(range(1025), 1)}, "logit_bias"),
        ({"bad_words": [""]}, "bad_words"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_does_not_go_together_is_refused(params: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**params)
    assert caught.value.param == param


def test_what_the_model_does_not_have_is_refused(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    with pytest.raises(RequestError, match="logit_bias has token 199"):
        runtime.stream([1], SamplingParams(logit_bias={199: 1}))
    with pytest.raises(RequestError, match="no tokenizer"):
        runtime.stream([1], SamplingParams(bad_words=["x"]))


def test_a_request_that_bans_everything_ends_with_an_error(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    for how in ({}, DRAWN):
        wish = SamplingParams(logit_bias=dict.fromkeys(range(199), -100), **how)
        assert "every token is banned" in str(runtime.generate([[1]], wish)[0].error)
    assert runtime.generate([[1]], SamplingParams(max_tokens=2))[0].error is None


# --- prompts that are only scored ----------------------------------------------------------------


def test_a_prompt_is_scored_without_an_answer(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(max_batch_tokens=7, prefix_cache_ttl=0)
    prompts = [[n + 1] * (n + 1) + [5, 9, 2] * n for n in range(12)]
    only = SamplingParams(max_tokens=0, prompt_logprobs=2)
    answered = SamplingParams(max_tokens=3, prompt_logprobs=2)
    others = [runtime.stream([7, 8], SamplingParams(max_tokens=60)) for _ in range(2)]
    scored = runtime.generate(prompts, only)
    for result, full in zip(scored, runtime.generate(prompts, answered), strict=True):
        assert result.error is None
        assert result.finish_reason == "length"
        assert (result.text, result.token_ids, result.usage.completion_tokens) == ("", (), 0)
        assert result.prompt_logprobs == full.prompt_logprobs
    assert others[0].result.token_ids == others[1].result.token_ids
    pieces = list(runtime.stream([3, 4], only))
    assert [(p.text, p.token_ids, p.finish_reason) for p in pieces] == [("", (), "length")]
    until(lambda: not pages_in_use(runtime))


def test_a_scored_prompt_may_fill_the_context(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(max_model_len=40)
    score = SamplingParams(max_tokens=0, prompt_logprobs=0)
    logprobs = runtime.generate([[3] * 40], score)[0].prompt_logprobs
    assert logprobs is not None
    assert len(logprobs) == 39
    with pytest.raises(RequestError, match="41 tokens"):
        runtime.stream([3] * 41, score)
    with pytest.raises(RequestError, match="40 tokens"):
        runtime.stream([3] * 40, SamplingParams(max_tokens=1))
    assert len(runtime.generate([[3] * 39], SamplingParams(max_tokens=5))[0].token_ids) == 1
