"""How fast a batch is said to go on."""

from dataclasses import replace

from kvrt.batches.pace import Pace
from kvrt.batches.words import Batch, Tokens


def test_a_batch_that_goes_on_is_measured_by_what_was_answered_since() -> None:
    now = 100.0
    begun = Batch(
        "b", "", "", "in", "out", "errors", "", 0, None,
        total=100, done=20, failed=10, tokens=Tokens(50, 0, 40),
    )  # fmt: skip
    pace = Pace(begun, lambda: now)
    now = 110.0
    assert pace.standing.seconds_left is None, "nothing was answered yet"
    pace.watch(replace(begun, done=38, failed=12, tokens=Tokens(150, 30, 90)))
    found = pace.standing
    assert (found.seconds, found.lines, found.lines_per_s, found.tokens_per_s) == (10, 20, 2, 5)
    assert (found.seconds_left, found.cached) == (25, 0.2)
    pace.stop()
    now = 1000.0
    assert pace.standing == found


def test_a_batch_whose_lines_were_just_counted_begins_with_them() -> None:
    now = 0.0
    begun = Batch("b", "", "", "in", "out", "errors", "", 0, None)
    pace = Pace(begun, lambda: now)
    pace.watch(replace(begun, total=8))
    now = 2.0
    pace.watch(replace(begun, total=8, done=4))
    assert (pace.standing.lines, pace.standing.seconds_left) == (4, 2)
