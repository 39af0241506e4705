"""Beam search on a table of probabilities, where the right answer can be counted out."""

import itertools
import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrt.outputs import TokenLogprobs
from kvrt.sched.beams import BeamSearch

VOCAB = 4
END = 0

Language = Callable[[Sequence[int]], list[float]]


def language(seed: int) -> Language:
    """Log-probabilities of each token behind any text."""

    def after(text: Sequence[int]) -> list[float]:
        rng = random.Random(f"{seed}{list(text)}")
        weights = [rng.random() + 0.01 for _ in range(VOCAB)]
        return [math.log(weight / sum(weights)) for weight in weights]

    return after


def run(search: BeamSearch, after: Language) -> list[list[int]]:
    """Search to the end; each step's live beams must be the continuations they are said to be."""
    texts: list[list[int]] = [[]]
    while True:
        offers = [
            sorted(
                (TokenLogprobs(token, value) for token, value in enumerate(after(text))),
                key=lambda entry: -entry.logprob,
            )[: search.choices]
            for text in texts
        ]
        parents = search.advance(offers)
        if not parents:
            return [found.beam.token_ids for found in search.best(search.width)]
        assert parents == sorted(parents)
        old, texts = texts, [beam.token_ids for beam in search.live]
        assert len(texts) <= search.width
        for parent, text in zip(parents, texts, strict=True):
            assert text[:-1] == old[parent]
        assert len({tuple(text) for text in texts}) == len(texts)


def every_text(after: Language, longest: int) -> dict[tuple[int, ...], float]:
    """All that can be said in at most so many tokens, and its log-probability."""
    said: dict[tuple[int, ...], float] = {}
    for length in range(1, longest + 1):
        for text in itertools.product(range(VOCAB), repeat=length):
            ended = text[-1] == END
            if END in text[:-1] or not (ended or length == longest):
                continue
            said[text] = sum(after(text[:n])[token] for n, token in enumerate(text))
    return said


@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_a_search_wide_enough_to_hold_every_text_finds_the_best_of_all(
    seed: int, longest: int, penalty: float
) -> None:
    after = language(seed)
    everything = every_text(after, longest)
    search = BeamSearch(len(everything), longest, frozenset([END]), penalty)
    best = max(everything, key=lambda text: everything[text] / len(text) ** penalty)
    found = run(search, after)
    assert tuple(found[0]) == best
    assert search.best(1)[0].score == pytest.approx(everything[best] / len(best) ** penalty)
    assert len(found) == len(everything)


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 8))
def test_scores_are_those_of_the_texts_and_fall(seed: int, width: int, longest: int) -> None:
    after = language(seed)
    search = BeamSearch(width, longest, frozenset([END]), 1.0)
    run(search, after)
    best = search.best(width)
    assert [found.score for found in best] == sorted((f.score for f in best), reverse=True)
    for found in best:
        text = found.beam.token_ids
        total = sum(after(text[:n])[token] for n, token in enumerate(text))
        assert found.score == pytest.approx(total / len(text))
        assert search.why_ended(found.beam) == ("stop" if text[-1] == END else "length")


def test_width_1_is_greedy() -> None:
    after = language(5)
    search = BeamSearch(1, 9, frozenset(), 1.0)
    greedy: list[int] = []
    for _ in range(9):
        logprobs = after(greedy)
        greedy.append(logprobs.index(max(logprobs)))
    assert run(search, after) == [greedy]


def test_a_greedy_first_step_can_be_left_for_a_likelier_whole() -> None:
    texts = {(): [0.1, 0.5, 0.4, 0.0], (1,): [0.25] * 4, (2,): [0.0, 0.0, 0.0, 1.0]}

    def after(text: Sequence[int]) -> list[float]:
        return [math.log(p) if p else -1e9 for p in texts[tuple(text)]]

    assert run(BeamSearch(2, 2, frozenset(), 1.0), after)[0] == [2, 3]


def test_the_search_ends_when_no_live_beam_can_still_be_among_the_best() -> None:
    after: Language = lambda text: [math.log(p) for p in (0.97, 0.01, 0.01, 0.01)]  # noqa: E731
    search = BeamSearch(2, 1000, frozenset([END]), 1.0)
    found = run(search, after)
    assert found[0] == [END]
    assert max(map(len, found)) < 10


def test_beams_in_progress_are_given_when_too_few_have_ended() -> None:
    search = BeamSearch(2, 10, frozenset([END]), 0.0)
    search.advance([[TokenLogprobs(t, lp) for t, lp in ((END, -0.1), (1, -1.0), (2, -2.0))]])
    best = search.best(3)
    assert [found.beam.token_ids for found in best] == [[END], [1], [2]]
    assert [search.why_ended(found.beam) for found in best] == ["stop", None, None]


def test_what_live_beams_have_in_common_is_counted() -> None:
    search = BeamSearch(2, 10, frozenset(), 1.0)
    assert search.common == 0
    search.advance([[TokenLogprobs(3, -0.1), TokenLogprobs(1, -5.0)]])
    search.advance([[TokenLogprobs(1, -0.5), TokenLogprobs(2, -0.6)]] * 2)
    assert [beam.token_ids for beam in search.live] == [[3, 1], [3, 2]]
    assert search.common == 1


def test_an_end_counts_only_among_the_likeliest_continuations() -> None:
    """As many places as there are beams; the next one is one too many."""
    search = BeamSearch(2, 10, frozenset({END, END + 1}), 1.0)
    order = [END, 2, END + 1, 3]
    offer = [TokenLogprobs(token, -float(place + 1)) for place, token in enumerate(order)]
    assert search.advance([offer]) == [0, 0]
    assert [beam.token_ids for beam in search.live] == [[2], [3]]
    assert [found.beam.token_ids for found in search.finished] == [[END]]
