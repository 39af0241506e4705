"""The sampler against distributions worked out by hand."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvrt.engine.sampler import Choice, Chosen, Scores, token_logprobs
from kvrt.errors import KvrtError, RequestError
from kvrt.sampling import SamplingParams

PROBS = [0.5, 0.25, 0.15, 0.07, 0.03]
LOGITS = torch.tensor([[math.log(p) for p in PROBS]])


def sample(logits: torch.Tensor, choices: Sequence[Choice]) -> list[Chosen]:
    """A token for each row."""
    scores = Scores(logits)
    return [scores.choose(at, choice) for at, choice in enumerate(choices)]


def draws(params: SamplingParams, count: int = 4000) -> list[int]:
    """How often each token is drawn over many positions of one request."""
    hits = [0] * len(PROBS)
    for position in range(count):
        choice = Choice(params, 7, [], [0] * position)
        hits[sample(LOGITS, [choice])[0].token_id] += 1
    return hits


def test_greedy_takes_the_likeliest() -> None:
    assert sample(LOGITS, [Choice(SamplingParams(), 0, [], [])])[0].token_id == 0


def test_temperature_one_draws_from_the_models_distribution() -> None:
    for hits, p in zip(draws(SamplingParams(temperature=1.0)), PROBS, strict=True):
        assert abs(hits / 4000 - p) < 4 * math.sqrt(p * (1 - p) / 4000)


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        (SamplingParams(temperature=1.0, top_k=2), {0, 1}),
        (SamplingParams(temperature=1.0, top_p=0.74), {0, 1}),
        (SamplingParams(temperature=1.0, top_p=0.76), {0, 1, 2}),
        (SamplingParams(temperature=1.0, top_p=1e-9), {0}),
        (SamplingParams(temperature=1.0, min_p=0.29), {0, 1, 2}),
        (SamplingParams(temperature=1.0, top_k=3, top_p=0.8), {0, 1}),
        (SamplingParams(temperature=1.0, top_k=1), {0}),
        (SamplingParams(temperature=1.0, top_k=-1), {0, 1, 2, 3, 4}),
    ],
)
def test_a_filter_keeps_just_the_tokens_it_should(params: SamplingParams, kept: set[int]) -> None:
    hits = draws(params, 600)
    assert {token for token, n in enumerate(hits) if n} == kept


def test_top_p_finds_its_tokens_in_a_large_flat_vocabulary() -> None:
    logits = torch.zeros(1, 5000)
    seen = {
        sample(logits, [Choice(SamplingParams(temperature=1.0, top_p=0.9), s, [], [])])[0].token_id
        for s in range(300)
    }
    assert len(seen) > 250, "a nucleus of 4,500 tokens is not cut at the first candidates"


def test_a_seed_repeats_its_draws_whatever_runs_beside_it() -> None:
    torch.manual_seed(0)
    logits = torch.randn(8, 300)
    params = SamplingParams(temperature=1.0, top_p=0.95)
    together = sample(logits, [Choice(params, seed, [], [1, 2]) for seed in range(8)])
    alone = [sample(logits[i : i + 1], [Choice(params, i, [], [1, 2])])[0] for i in range(8)]
    assert together == alone
    others = sample(logits, [Choice(params, seed + 100, [], [1, 2]) for seed in range(8)])
    assert together != others


def test_penalties_lower_the_scores_of_tokens_seen() -> None:
    def greedy(params: SamplingParams, prompt: list[int], output: list[int]) -> int:
        return sample(torch.tensor([[2.0, 1.9, -1.0]]), [Choice(params, 0, prompt, output)])[
            0
        ].token_id

    assert greedy(SamplingParams(repetition_penalty=1.2), [0], []) == 1
    assert greedy(SamplingParams(presence_penalty=0.2), [0], []) == 0, "the prompt does not count"
    assert greedy(SamplingParams(presence_penalty=0.2), [], [0]) == 1
    assert greedy(SamplingParams(frequency_penalty=0.04), [], [0, 0]) == 0
    assert greedy(SamplingParams(frequency_penalty=0.04), [], [0, 0, 0]) == 1


def test_presence_counts_once_however_often_a_token_occurs() -> None:
    logits = torch.tensor([[2.0, 1.9]])
    for params, output, token in (
        (SamplingParams(presence_penalty=0.06), [0, 0, 0], 0),
        (SamplingParams(frequency_penalty=0.06), [0, 0, 0], 1),
        (SamplingParams(presence_penalty=0.06, frequency_penalty=0.03), [0], 0),
        (SamplingParams(presence_penalty=0.06, frequency_penalty=0.03), [0, 0], 1),
    ):
        assert sample(logits, [Choice(params, 0, [], output)])[0].token_id == token


def test_biases_come_before_penalties_and_bans_hold_against_everything() -> None:
    logits = torch.tensor([[2.5, -1.0, -3.0]])

    def choose(output: list[int], **params: Any) -> int:
        choice = Choice(
            SamplingParams(**params), 0, [1], output, frozenset({0, 10**6}), [[1, 1, 0], [7, 0]]
        )
        return sample(logits, [choice])[0].token_id

    assert choose([], logit_bias={1: 5}) == 1
    assert choose([], logit_bias={1: 5}, repetition_penalty=2.0) == 0, "(5 - 1) / 2 is below 2.5"
    assert choose([], logit_bias={0: -100, 1: -100}, presence_penalty=-100.0) == 2
    assert choose([0, 0], logit_bias={0: -100}, presence_penalty=-100.0) == 1
    assert choose([2], min_tokens=2) == 1
    assert choose([2, 2], min_tokens=2) == 0
    assert choose([2, 1, 1]) == 1, "the word was to end here"
    assert choose([1]) == 0
    for temperature in (0.0, 1.0):
        with pytest.raises(RequestError, match="every token is banned"):
            choose([], logit_bias={0: -100, 1: -100, 2: -100}, temperature=temperature)


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-45, 1e-38, 1e-20, 9e-6, 1e-5, 1e-4])
@pytest.mark.parametrize("more", [{}, {"min_p": 0.1}, {"top_p": 0.5}, {"top_k": 3}], ids=str)
def test_the_limit_of_a_small_temperature_is_greedy(
    temperature: float, more: dict[str, Any]
) -> None:
    for logits in (LOGITS, LOGITS * 1e4, LOGITS * 1e37, torch.tensor([[-3e38, 3e38, 0.0]])):
        params = SamplingParams(temperature=temperature, seed=1, **more)
        for seed in range(5):
            token = sample(logits, [Choice(params, seed, [], [])])[0].token_id
            assert token == int(logits.argmax())


def test_penalties_beyond_what_floats_hold_leave_the_likeliest_in_front() -> None:
    logits = torch.tensor([[3e38, 1.0, 0.0]])
    params = SamplingParams(temperature=1.0, repetition_penalty=0.01, min_p=0.1)
    assert sample(logits, [Choice(params, 3, [0, 1, 2], [])])[0].token_id == 0


def test_no_scores_of_the_model_give_log_probabilities_that_json_cannot_say() -> None:
    logits = torch.tensor([[3e38, -3e38, 0.0]])
    found = Scores(logits).logprobs(0, 1, 3)
    json.dumps([found.logprob, *found.top], allow_nan=False)
    offers = Scores(logits).likeliest([0], [3], [3], [None])[0]
    json.dumps([(t.logprob, *t.top) for t in offers], allow_nan=False)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_an_error_of_their_row_alone(bad: float) -> None:
    logits = torch.randn(3, 50)
    logits[1, 17] = bad
    scores = Scores(logits)
    for params in (SamplingParams(), SamplingParams(temperature=1.0), SamplingParams(logprobs=1)):
        for row in (0, 2):
            scores.choose(row, Choice(params, 0, [], []))
        with pytest.raises(KvrtError, match="not finite"):
            scores.choose(1, Choice(params, 0, [], []))
    with pytest.raises(KvrtError, match="not finite"):
        scores.logprobs(1, 0, 0)
    Scores(torch.full((1, 50), 3e38)).check(0)  # their sum is not finite, but they are


def test_logprobs_are_those_of_the_model_before_temperature() -> None:
    params = SamplingParams(temperature=0.1, logprobs=2)
    chosen = sample(LOGITS, [Choice(params, 3, [], [])])[0]
    assert chosen.logprobs is not None
    assert chosen.logprobs.logprob == pytest.approx(math.log(PROBS[chosen.token_id]), rel=1e-5)
    assert [token for token, _ in chosen.logprobs.top] == [0, 1]
    assert token_logprobs(LOGITS[0], 4, 0).logprob == pytest.approx(math.log(0.03), rel=1e-5)


def test_of_a_small_vocabulary_all_tokens_are_named_however_many_were_asked_for() -> None:
    everything = [0, 1, 2, 3, 4]
    chosen = sample(LOGITS, [Choice(SamplingParams(logprobs=100), 0, [], [])])[0]
    assert chosen.logprobs is not None
    assert [token for token, _ in chosen.logprobs.top] == everything
    offers = Scores(LOGITS).likeliest([0], [7], [9], [None])[0]
    assert [offer.token_id for offer in offers] == everything
    assert [[token for token, _ in offer.top] for offer in offers] == [everything] * 5


@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40),
    temperature=st.floats(0.01, 10),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0, 1),
    seed=st.integers(0, 2**64 - 1),
)
def test_any_parameters_choose_a_token_that_exists(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    token = sample(torch.tensor([logits]), [Choice(params, seed, [], [])])[0].token_id
    assert 0 <= token < len(logits)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 30_000])
@pytest.mark.parametrize("scale", [0.0, 1.0, 8.0])
@pytest.mark.parametrize(
    "more",
    [{}, {"top_k": 300}, {"top_p": 0.9}, {"min_p": 0.02}, {"top_k": 40, "top_p": 0.7}],
    ids=str,
)
def test_a_draw_is_where_its_number_falls_among_the_kept_in_order_of_their_ids(
    size: int, scale: float, more: dict[str, Any]
) -> None:
    params = SamplingParams(temperature=0.7, **more)
    logits = np.random.default_rng(size).normal(0, scale, size).astype(np.float32)
    probs = np.exp((logits.astype(np.float64) - logits.max()) / 0.7)
    order = np.argsort(-logits, kind="stable")[: params.top_k or None]
    reached = probs[order].cumsum() / probs[order].sum()
    order = order[: int((reached < params.top_p).sum()) + 1]
    kept = np.where(np.isin(np.arange(size), order) & (probs >= params.min_p), probs, 0)
    below = np.concatenate(([0.0], kept.cumsum())) / kept.sum()
    for seed in range(20):
        token = sample(torch.from_numpy(logits[None]), [Choice(params, seed, [], [])])[0].token_id
        number = np.random.Generator(np.random.Philox(key=seed, counter=0)).random()
        assert kept[token]
        assert below[token] - 1e-5 <= number <= below[token + 1] + 1e-5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1), ("max_tokens", 2**31), ("max_tokens", True), ("max_tokens", 1.5),
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", 1e308),
        ("top_p", 0.0), ("top_p", 1.01), ("top_k", -2), ("min_p", 2), ("n", 0), ("n", 2**31),
        ("repetition_penalty", 0), ("presence_penalty", math.inf), ("frequency_penalty", "1"),
        ("seed", -1), ("seed", 2**64), ("stop", [""]), ("stop", ["a"] * 65), ("stop", [3]),
        ("stop_token_ids", [-1]), ("logprobs", 101), ("prompt_logprobs", -1),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_its_name(field: str, value: object) -> None:
    with pytest.raises(RequestError, match=field) as caught:
        SamplingParams(**{field: value})
    assert caught.value.param == field


def test_a_token_that_is_not_allowed_is_never_chosen() -> None:
    mask = np.array([False, False, True, False, True])
    hits = [0] * 5
    for seed in range(300):
        for params in (
            SamplingParams(temperature=1.0),
            SamplingParams(temperature=1.0, top_k=4, top_p=0.9, min_p=0.1),
            SamplingParams(temperature=1.0, logit_bias={0: 100.0}, repetition_penalty=2.0),
        ):
            (chosen,) = sample(LOGITS, [Choice(params, seed, [1], [0], allowed=mask)])
            hits[chosen.token_id] += 1
    assert [token for token, count in enumerate(hits) if count] == [2, 4]
    greedy = Choice(SamplingParams(logprobs=2), 0, [], [], allowed=mask)
    (chosen,) = sample(LOGITS, [greedy])
    assert chosen.logprobs is not None
    assert chosen.token_id == 2
    assert [token for token, _ in chosen.logprobs.top] == [0, 1], "they are the model's own"
    with pytest.raises(RequestError, match="every token is banned"):
        sample(LOGITS, [Choice(SamplingParams(), 0, [], [], allowed=np.zeros(5, np.bool_))])


def test_beams_are_offered_allowed_tokens_alone_with_the_models_own_probabilities() -> None:
    logits = torch.cat([LOGITS, LOGITS])
    mask = np.array([False, True, False, False, True])
    free, held = Scores(logits).likeliest([0, 1], [3, 3], [1, 1], [None, mask])
    assert [entry.token_id for entry in free] == [0, 1, 2]
    assert [entry.token_id for entry in held] == [1, 4]
    assert math.isclose(held[0].logprob, math.log(PROBS[1]), rel_tol=1e-5)
    assert held[0].top == free[0].top


def test_a_tokens_probability_is_that_of_softmax_however_large_its_score_is() -> None:
    rows = torch.tensor([[0.0, 1.0, 2.0], [300.0, -300.0, 299.0], [-3e38, 3e38, 0.0]])
    scores, want = Scores(rows), rows.double().softmax(-1)
    for at in range(3):
        for token in range(3):
            assert scores.probability(at, token) == pytest.approx(float(want[at, token]), abs=1e-6)
