"""What `ci/pair` says of the times of two trees."""

from .pair import Ratio, Times, ratios, table


def test_times_of_two_trees_become_ratios_of_what_both_have() -> None:
    here = [{"a: x": Times(2.0, 3.0), "a: y": Times(1.0, 1.0)}, {"a: x": Times(1.0, 8.0)}]
    there = [{"a: x": Times(4.0, 3.0)}, {"a: x": Times(9.0, 2.0), "b: new": Times(1.0, 1.0)}]
    assert ratios(here, there) == [Ratio("a: x", 0.25, 2.5)]


def test_kinds_of_benchmarks_have_the_geometric_mean() -> None:
    rows = table([Ratio("a: x", 0.5, 1.0), Ratio("a: y", 2.0, 4.0), Ratio("b: z", 1.5, 1.5)])
    assert rows[-2:] == ["| all 2 of a | 1.000 | 2.000 |", "| all 1 of b | 1.500 | 1.500 |"]
