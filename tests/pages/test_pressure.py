"""What is left to a KV cache while others of its machine take memory."""

from kvrt.kv.pressure import ALL, ENOUGH_BYTES, LOOK_S, Pressure

MIB = 1 << 20
LEAST, ASKED = 4 * MIB, 1000 * MIB


class Machine:
    """With so much free, and a clock that goes on at each look."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.now = 0.0
        self.looks = 0
        self.pressure = Pressure(self._look, 64 << 30, lambda: self.now)

    def _look(self) -> int:
        self.looks += 1
        return self.free

    def left(self, held: int) -> int:
        self.now += LOOK_S
        return self.pressure.left(held, LEAST, ASKED)


def test_nothing_is_taken_while_there_is_enough() -> None:
    machine = Machine(ENOUGH_BYTES // 2)
    assert machine.left(500 * MIB) == ALL


def test_what_is_missing_is_given_back_and_taken_again_when_it_is_there() -> None:
    machine = Machine(10 * MIB)
    held = 500 * MIB
    left = machine.left(held)
    assert left == held - (ENOUGH_BYTES - 10 * MIB)
    machine.free = ENOUGH_BYTES  # as it was given back
    assert machine.left(left) == left
    machine.free += 100 * MIB
    assert machine.left(left) == left + 100 * MIB
    machine.free = 2 * ASKED
    assert machine.left(left) == ALL


def test_while_nothing_is_free_each_look_takes_more_down_to_the_least() -> None:
    machine, held = Machine(0), 200 * MIB
    for _ in range(4):
        left = machine.left(held)
        assert left == max(LEAST, held - ENOUGH_BYTES)
        held = left
    assert held == LEAST


def test_the_system_is_not_asked_in_each_step() -> None:
    machine = Machine(0)
    left = machine.left(500 * MIB)
    machine.free = 2 * ASKED
    machine.now += LOOK_S / 2
    assert machine.pressure.left(500 * MIB, LEAST, ASKED) == left
    assert machine.looks == 1


def test_of_a_small_machine_less_is_enough() -> None:
    pressure = Pressure(lambda: 3 * MIB, 32 * MIB)
    assert pressure.left(20 * MIB, LEAST, ASKED) == ALL
