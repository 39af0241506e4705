"""A limit that a device could not keep is lowered, and comes back."""

from kvrt.kv.limit import Limit

CHUNK = 100


def steps_until_restored(limit: Limit) -> int:
    steps = 1
    while not limit.step():
        steps += 1
        assert steps < 10_000
    return steps


def test_what_was_refused_is_tried_again_after_some_steps() -> None:
    limit = Limit(50, 5000)
    assert not limit.lowered
    limit.lower(3, 3 * CHUNK)
    assert (limit.chunks, limit.nbytes) == (3, 300)
    assert (limit.asked_chunks, limit.asked_bytes) == (50, 5000)
    assert steps_until_restored(limit) == 32
    assert (limit.chunks, limit.nbytes) == (50, 5000)
    assert not any(limit.step() for _ in range(1000)), "once is enough"


def test_a_device_that_keeps_refusing_is_asked_less_and_less_often() -> None:
    limit = Limit(50, 5000)
    waits = []
    for _ in range(9):
        limit.lower(3, 300)
        limit.lower(2, 200)  # the same refusal: there was not even room for three
        waits.append(steps_until_restored(limit))
    assert waits == [32, 64, 128, 256, 512, 1024, 1024, 1024, 1024]
    for _ in range(3000):
        limit.step()
    limit.lower(3, 300)
    assert steps_until_restored(limit) == 32, "it has had memory for long"


def test_when_nothing_runs_all_is_forgiven_at_once() -> None:
    limit = Limit(50, 5000)
    assert not limit.restore()
    limit.lower(3, 300)
    assert limit.restore()
    assert limit.chunks == 50
    assert not limit.restore()


def test_a_limit_that_is_set_is_the_limit() -> None:
    limit = Limit(50, 5000)
    limit.lower(3, 300)
    limit.ask(7, 750)
    assert (limit.chunks, limit.nbytes, limit.lowered) == (7, 750, False)
    limit.lower(2, 200)
    assert steps_until_restored(limit) == 32
    assert limit.chunks == 7


def test_changes_that_come_late_are_ignored_whatever_their_numbers_are() -> None:
    limit = Limit(50, 5000)
    asked = [(0, True), (0, False), (-1, False), (None, True), (0, False), (3, True), (2, False)]
    for at, (revision, taken) in enumerate(asked):
        assert limit.ask(10 + at, 100 * at, revision) == taken
        assert (limit.chunks == 10 + at) == taken
    assert Limit(50, 5000).ask(10, 1000, -5), "the first of all"
