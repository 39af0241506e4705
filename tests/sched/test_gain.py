"""Drafts of a model are made where tokens per second are gained, by what was measured."""

import itertools

import pytest

from kvrt.drafting.cost import StepCost
from kvrt.drafting.gain import LAST_PATIENCE, Gain


def target(base: float, each: float) -> StepCost:
    """Steps of so many seconds, and so many more for each token."""
    cost = StepCost()
    for tokens in (1, 2, 4, 8) * 8:
        cost.observe(tokens, base + each * tokens)
    return cost


def measured(base: float, each: float, draft: float, true: float, probability: float) -> Gain:
    """What passes of the model that drafts take, and how often its drafts came true."""
    gain = Gain(target(base, each), 0.25)
    for sequences in (1, 2, 4) * 8:
        gain.passes.observe(sequences, draft)
    for turn in range(400):
        gain.learn([probability], int(turn % 10 < 10 * true))
    return gain


def drafts(gain: Gain, sequences: int, probability: float) -> int:
    """How many each of so many sequences is given in a step."""
    course, chance, made = gain.course(sequences, sequences), 1.0, 0
    while made < 16 and course.pays([chance] * sequences):
        course.spend(sequences)
        chance *= gain.chance(probability)
        made += 1
        for _ in range(sequences):
            course.add(chance)
    return made


def test_the_likelier_and_the_cheaper_the_more() -> None:
    few = drafts(measured(10e-3, 0.1e-3, 2e-3, 0.5, 0.5), 1, 0.5)
    more = drafts(measured(10e-3, 0.1e-3, 2e-3, 0.9, 0.9), 1, 0.9)
    cheap = drafts(measured(10e-3, 0.1e-3, 0.2e-3, 0.9, 0.9), 1, 0.9)
    assert 1 <= few < more < cheap


@pytest.mark.parametrize(
    ("base", "each", "draft", "true", "sequences"),
    [
        (10e-3, 0.1e-3, 2e-3, 0.0, 1),  # they never come true
        (10e-3, 0.1e-3, 20e-3, 0.9, 1),  # a pass takes longer than a step
        (0.1e-3, 10e-3, 2e-3, 0.7, 8),  # every token of a step takes as long as any other
    ],
)
def test_none_where_nothing_is_gained(
    base: float, each: float, draft: float, true: float, sequences: int
) -> None:
    assert drafts(measured(base, each, draft, true, 0.9), sequences, 0.9) == 0


def test_reading_a_prompt_costs_what_such_passes_took() -> None:
    gain = measured(base=0.01, each=0.001, draft=0.001, true=0.9, probability=0.9)
    assert gain.reading_seconds(800) > 50 * gain.pass_seconds(1), "before any was seen"
    for tokens in (100, 200, 400):
        gain.reading.observe(tokens, 0.0001 * tokens)
    assert gain.reading_seconds(300) == pytest.approx(0.03, rel=0.2)
    assert gain.pass_seconds(1) == pytest.approx(0.001, rel=0.2)


def test_none_before_a_step_was_measured() -> None:
    assert not Gain(StepCost(), 0.25).course(1, 1).pays([1.0])


def test_what_is_late_counts() -> None:
    gain = measured(10e-3, 0.1e-3, 2e-3, 0.9, 0.9)
    course = gain.course(1, 1)
    assert course.pays([1.0])
    assert not course.pays([1.0], lag=50e-3)


def test_where_it_does_not_pay_it_is_tried_ever_more_seldom() -> None:
    gain = Gain(StepCost(), 0.25)
    tried = [step for step in range(5000) if gain.tries(pays=False)]
    gaps = [later - step for step, later in itertools.pairwise(tried)]
    assert gaps == sorted(gaps)
    assert gaps[-1] == LAST_PATIENCE
    assert gain.tries(pays=True)


def test_a_probability_means_what_came_of_it() -> None:
    gain = measured(10e-3, 0.1e-3, 2e-3, 0.2, 0.95)
    assert gain.chance(0.95) == pytest.approx(0.2, abs=0.15)
    assert gain.chance(0.55) == pytest.approx(0.55)
    assert gain.chance(1.0) == gain.chance(0.95)
