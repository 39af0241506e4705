"""Free blocks equal a plain set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrt.errors import IntegrityError
from kvrt.kv.tiers.extents import Extents


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 6), st.integers(0, 9)), max_size=60))
def test_taking_and_giving_equals_a_set(steps: list[tuple[bool, int, int]]) -> None:
    extents, free, taken = Extents(), set(range(40)), []
    extents.add(0, 40)
    for take, count, which in steps:
        if take:
            start = extents.take(count)
            fits = [n for n in range(40) if free.issuperset(range(n, n + count))]
            assert start == min(fits, default=None)
            if start is not None:
                free -= set(range(start, start + count))
                taken.append((start, count))
        elif taken:
            start, count = taken.pop(which % len(taken))
            extents.add(start, count)
            free |= set(range(start, start + count))
        assert extents.free == len(free)
        assert {n for start, count in extents.runs() for n in range(start, start + count)} == free
        ends = [start + count for start, count in extents.runs()]
        assert not set(ends) & {start for start, _ in extents.runs()}, "neighbours did not join"


@pytest.mark.parametrize(("start", "count"), [(4, 1), (2, 3), (7, 2), (0, 20), (5, 1)])
def test_a_block_given_twice_is_found(start: int, count: int) -> None:
    extents = Extents()
    extents.add(4, 4)
    with pytest.raises(IntegrityError, match="free already"):
        extents.add(start, count)
    assert extents.runs() == [(4, 4)]
