"""The log of what became of cached pages."""

from kvrt.kv.index.events import KEPT_EVENTS, EventLog
from tests.tiers.pages import names

NAMES = names(5)


def numbers(log: EventLog, since: int) -> list[int]:
    return [event.number for event in log.since(since)]


def test_events_are_counted_without_a_gap_and_the_last_ones_are_kept() -> None:
    log = EventLog(kept=3)
    assert log.since(0) == ()
    log.add("stored", NAMES[:2])
    log.add("removed", NAMES[:1])
    assert [(e.number, e.kind, e.name) for e in log.since(0)] == [
        (1, "stored", NAMES[0]), (2, "stored", NAMES[1]), (3, "removed", NAMES[0]),
    ]  # fmt: skip
    assert [numbers(log, since) for since in range(5)] == [[1, 2, 3], [2, 3], [3], [], []]
    log.add("cleared", (None,))
    log.add("stored", NAMES[2:3])
    assert [numbers(log, since) for since in range(7)] == [
        [3, 4, 5], [3, 4, 5], [3, 4, 5], [4, 5], [5], [], [],
    ]  # fmt: skip
    log.add("removed", ())
    assert numbers(log, 4) == [5]


def test_ten_thousand_events_are_kept() -> None:
    log = EventLog()
    for _ in range(KEPT_EVENTS // 5 + 1):
        log.add("stored", NAMES)
    assert numbers(log, 0) == [*range(6, KEPT_EVENTS + 6)]
