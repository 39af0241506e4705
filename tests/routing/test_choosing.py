"""Which server is to answer, as values."""

import random

import pytest

from kvrt.integrations.choosing import Candidate, Policy, choose

IDLE = Candidate(cached=0, waiting=0, running=0, pace=None, turns=0)


def like(**changes: float) -> Candidate:
    return Candidate(**{**{f: getattr(IDLE, f) for f in IDLE.__slots__}, **changes})  # type: ignore[arg-type]


def test_the_one_that_has_most_of_a_prompt_is_asked() -> None:
    assert choose([IDLE, like(cached=512), like(cached=256)], 1000) == 1


def test_unless_it_has_so_much_to_do_that_computing_anew_is_sooner() -> None:
    busy = like(cached=900, waiting=1500)
    assert choose([IDLE, busy], 1000) == 0
    assert choose([IDLE, like(cached=900, waiting=800)], 1000) == 1
    assert choose([IDLE, like(cached=900, running=20)], 1000) == 0


def test_a_slow_one_is_asked_less() -> None:
    assert choose([like(pace=0.004), like(pace=0.001)], 100) == 1
    assert choose([like(pace=0.004, cached=900), like(pace=0.001)], 1000) == 0


def test_one_that_is_not_known_yet_is_taken_for_a_usual_one() -> None:
    assert choose([like(pace=0.001), IDLE, like(pace=0.002, running=1)], 100) == 0


def test_one_lucky_answer_does_not_draw_everything() -> None:
    candidates = [like(pace=0.001), like(pace=1e-9, waiting=600)]
    assert choose(candidates, 100) == 0


def test_equals_take_turns() -> None:
    turns = [0, 0, 0]
    for _ in range(30):
        turns[choose([like(turns=n) for n in turns], 100)] += 1
    assert turns == [10, 10, 10]


@pytest.mark.parametrize("policy", ["least-loaded", "round-robin"])
def test_others_do_not_look_at_what_is_cached(policy: Policy) -> None:
    assert choose([IDLE, like(cached=900, turns=1, running=1)], 1000, policy) == 0


def test_in_turns_nothing_else_counts() -> None:
    assert choose([like(turns=3), like(turns=2, waiting=9999)], 10, "round-robin") == 1


def test_no_server_starves_while_prompts_are_all_different() -> None:
    rng = random.Random(0)
    waiting, turns = [0] * 4, [0] * 4
    for _ in range(400):
        length = rng.randint(1, 2000)
        seen = [like(waiting=w, turns=t) for w, t in zip(waiting, turns, strict=True)]
        chosen = choose(seen, length)
        turns[chosen] += 1
        waiting = [max(0, each - 250) for each in waiting]
        waiting[chosen] += length
    assert min(turns) > 60
