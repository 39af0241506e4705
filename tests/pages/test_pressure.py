"""What is left to a KV cache while others of its machine take memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrt.kv.pressure import ENOUGH_BYTES, LOOK_S, Left, Pressure, left_of
from kvrt.spi import MemoryInfo

MIB = 1 << 20
ENOUGH, LEAST, ASKED = 64, 4, 1000
LOW = ENOUGH // 2


class Machine:
    """`whole` units of memory, of which others hold some, and a cache that keeps to what it is
    left, as soon as it is told, and takes what it `wants`."""

    def __init__(self, whole: int, others: int) -> None:
        self.whole = whole
        self.others = others
        self.held = LEAST
        self.left: Left | None = None

    @property
    def info(self) -> MemoryInfo:
        free = max(0, self.whole - self.others - self.held)
        return MemoryInfo(self.whole, free, self.held, self.others)

    def look(self, wants: int) -> None:
        self.left = left_of(self.info, self.left, self.held, LEAST, ASKED, ENOUGH)
        most = ASKED if self.left is None else self.left.now
        self.held = max(LEAST, min(most, wants, self.held + self.info.free))


@given(
    whole=st.integers(ENOUGH, 3000),
    turns=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 1200)), max_size=30),
    last=st.tuples(st.integers(0, 3000), st.integers(0, 1200)),
)
def test_whatever_others_do_little_is_left_to_them_and_all_comes_back(
    whole: int, turns: list[tuple[int, int]], last: tuple[int, int]
) -> None:
    machine = Machine(whole, 0)
    for others, wants in [*turns, last]:
        machine.others = min(others, whole)
        machine.look(wants)
    for _ in range(30):
        machine.look(last[1])
        assert machine.left is None or min(machine.left.now, machine.left.most) >= LEAST
    assert machine.info.free >= LOW or machine.held == LEAST
    machine.others = 0
    machine.look(0)
    machine.look(0)
    fits = max(LEAST, whole - ENOUGH)
    assert machine.left is None or fits < ASKED
    assert machine.left is None or machine.left.now >= fits - (ENOUGH - LOW)


@given(others=st.integers(0, 3000), wants=st.integers(0, 2000), whole=st.integers(ENOUGH, 3000))
def test_while_others_stay_as_they_are_what_is_left_does(
    others: int, wants: int, whole: int
) -> None:
    """Nothing goes to and fro."""
    machine = Machine(whole, min(others, whole))
    seen = []
    for _ in range(40):
        machine.look(wants)
        seen.append((machine.held, machine.left and machine.left.now))
    assert len(set(seen[35:])) == 1, seen


def test_what_is_left_for_later_is_what_others_hold() -> None:
    info = MemoryInfo(2000, 0, 100, others=300)
    assert left_of(info, None, 100, LEAST, ASKED, ENOUGH) == Left(100 - ENOUGH, 400 - ENOUGH)
    alone = MemoryInfo(2000, 0, 100, others=0)
    left = left_of(alone, None, 100, LEAST, ASKED, ENOUGH)
    assert left is not None
    assert left.most == left.now, "nobody has anything to give"


def test_nothing_is_taken_while_there_is_enough_and_of_a_small_machine_less_is_enough() -> None:
    held = 500 * MIB
    for total, free in ((64 << 30, ENOUGH_BYTES // 2), (32 * MIB, 1 * MIB)):
        for few in (0, 1):
            seen = MemoryInfo(1, free - few, 0, 0)
            pressure = Pressure(lambda seen=seen: seen, total)  # type: ignore[misc]
            pressure.look(held, LEAST, 2 * held)
            assert (pressure.left is None) is (not few)


def test_the_system_is_asked_now_and_then_and_it_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 0.0
    pressure = Pressure(lambda: MemoryInfo(1 << 40, 0, 0, 0), 1 << 40, lambda: now)
    for _ in range(3):
        assert pressure.due
        pressure.look(500 * MIB, LEAST, 1000 * MIB)
        assert not pressure.due
        now += LOOK_S
    assert len(caplog.records) == 1


def test_what_may_come_is_what_is_free_and_what_others_hold() -> None:
    pressure = Pressure(lambda: MemoryInfo(100, 10, 0, 5), 100)
    assert pressure.may_come(15)
    assert not pressure.may_come(16)
