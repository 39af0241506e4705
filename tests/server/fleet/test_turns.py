"""Threads have short turns while somebody wants that, and as long ones as before in the end."""

import sys
from contextlib import ExitStack
from itertools import permutations

import pytest

from kvrt.server.fleet.turns import SHORT_S, short_turns


@pytest.mark.parametrize("order", [*permutations(range(3))])
def test_turns_are_short_until_the_last_who_wants_it_has_ended(order: tuple[int, ...]) -> None:
    usual = sys.getswitchinterval()
    wants = [ExitStack() for _ in order]
    for each in wants:
        each.enter_context(short_turns())
    for number in order:
        assert sys.getswitchinterval() == pytest.approx(SHORT_S)
        wants[number].close()
    assert sys.getswitchinterval() == usual


def test_they_are_as_before_after_what_fails() -> None:
    usual = sys.getswitchinterval()
    with pytest.raises(ZeroDivisionError), short_turns():
        _ = 1 / 0
    assert sys.getswitchinterval() == usual
