"""How much memory is kept that no page needs: a rule about numbers of chunks."""

from collections.abc import Iterable

from kvrt.kv.spare import Spare

WINDOW = 32


def kept(spare: Spare, steps: Iterable[tuple[int, int]], limit: int = 1000) -> list[int]:
    """What is kept after each step, which comes with chunks that are needed, and spare ones."""
    return [spare.after_step(needed, count, limit) for needed, count in steps]


def test_what_is_spare_in_every_step_of_a_window_goes_at_its_end() -> None:
    spare = Spare(0)
    first = [(5, 9)] * WINDOW  # a window remembers what was spare when it began: nothing
    assert kept(spare, first) == [9] * WINDOW
    once_fewer = [(5, 9)] * 10 + [(10, 4)] + [(5, 9)] * (WINDOW - 11)
    assert kept(spare, once_fewer) == [9] * 10 + [4] + [9] * (WINDOW - 12) + [5]


def test_what_is_kept_warm_does_not_go() -> None:
    spare = Spare(8)
    assert kept(spare, [(5, 9)] * 2 * WINDOW)[-1] == 9 - (9 - (8 - 5))


def test_no_step_gives_back_more_than_it_has_time_for() -> None:
    spare = Spare(0)
    assert kept(spare, [(5, 100)] * 2 * WINDOW)[-1] == 100 - 32


def test_what_is_above_the_limit_goes_at_once() -> None:
    spare = Spare(8)
    assert kept(spare, [(5, 9), (5, 2), (12, 3)], limit=10) == [5, 2, 0]


def test_when_idle_the_floor_is_kept_within_the_limit() -> None:
    spare = Spare(8)
    assert [spare.when_idle(needed, 6) for needed in (0, 4, 6, 9)] == [6, 2, 0, 0]
    assert kept(spare, [(9, 4)] * WINDOW)[-1] == 4, "nothing was spare when it began"
