"""The choice between moving pages and computing them, by what was measured."""

import pytest

from kvrt.kv.index.cost import MoveCost, Preemption

PAGE, BYTES = 16, 1000


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def measured(token_s: float, page_s: float, choice: Preemption = "auto") -> tuple[MoveCost, Clock]:
    """Of the contexts that the tests ask about."""
    clock = Clock()
    cost = MoveCost(choice, clock)
    cost.computed(100, 32, 100 * token_s)
    cost.fetched(10 * BYTES, 10 * page_s)
    return cost, clock


@pytest.mark.parametrize(("page_s", "moves"), [(0.9, True), (1.1, False)])
def test_pages_are_fetched_where_that_takes_less_time_than_to_compute_them(
    page_s: float, moves: bool
) -> None:
    cost, _ = measured(1 / PAGE, page_s)
    assert cost.moves(4 * BYTES, 4 * PAGE, 64) is moves


def test_what_was_never_measured_is_fetched_and_a_choice_that_was_made_stands() -> None:
    assert MoveCost().moves(4 * BYTES, 4 * PAGE, 64)
    dear, _ = measured(1.0, 1000.0, "move")
    assert dear.moves(4 * BYTES, 4 * PAGE, 64)


@pytest.mark.parametrize(
    ("choice", "stored", "expected"),
    [("auto", True, 2.0), ("auto", False, 64.0), ("recompute", True, 64.0)],
)
def test_the_cheaper_way_back_counts_of_those_there_are(
    choice: Preemption, stored: bool, expected: float
) -> None:
    cost, _ = measured(1.0, 0.5, choice)
    assert cost.bring_back(64, 4 * BYTES, stored=stored) == pytest.approx(expected)
    dear, _ = measured(1.0, 50.0, choice)
    assert dear.bring_back(64, 4 * BYTES, stored=stored) == pytest.approx(64.0)


def test_a_mean_follows_what_is_measured_now() -> None:
    cost, _ = measured(1.0, 1.0)
    before = 1.0
    for _ in range(20):
        cost.computed(1, 32, 3.0)
        after = cost.bring_back(1, BYTES, stored=False)
        assert before < after < 3.0
        before = after
    assert before > 2.9


def test_each_class_of_context_is_measured_by_itself_and_stands_in_for_its_neighbours() -> None:
    cost = MoveCost()
    cost.computed(1, 100, 1.0)
    cost.computed(1, 10_000, 7.0)
    assert cost.bring_back(200, BYTES, stored=False) == pytest.approx(200 * 1.0)
    assert cost.bring_back(400, BYTES, stored=False) == pytest.approx(400 * 1.0)
    assert cost.bring_back(40_000, BYTES, stored=False) == pytest.approx(40_000 * 7.0)


def test_a_way_that_was_slow_long_ago_is_tried_again() -> None:
    cost, clock = measured(1 / PAGE, 1.5)
    assert not cost.moves(4 * BYTES, 4 * PAGE, 64)
    clock.now = 10.0
    assert cost.moves(4 * BYTES, 4 * PAGE, 64)
