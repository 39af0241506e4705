"""What `ci/serving` asks, and what it makes of the answers."""

from contextlib import contextmanager
from typing import Any

import pytest

from .serving import beside, cost
from .serving.clients import Heard
from .serving.report import table


def test_every_server_is_asked_the_same_and_no_repeat_what_an_earlier_one_was() -> None:
    for clients in beside.CLIENTS:
        asks = beside.asks_of(clients, 1, quick=False)
        assert asks == beside.asks_of(clients, 1, quick=False)
        assert asks != beside.asks_of(clients, 2, quick=False)
        assert len(asks) >= 3 * clients, "each place is filled again"


def test_what_a_server_keeps_is_of_runs_that_were_neighbours() -> None:
    own = [
        {"rate": 100.0, "first": 0.1, "alone": 0.02},
        {"rate": 50.0, "first": 0.2, "alone": 0.02},
    ]
    http = [{"rate": 98.0, "first": 0.15, "alone": 0.023}, {"rate": 49.0, "first": 0.25,
                                                            "alone": 0.023}]  # fmt: skip
    told = cost.summary({"embedded": own, "http": http})
    assert told["kept"] == pytest.approx(0.98)
    assert told["alone_grows"] == pytest.approx(0.003)
    assert told["first_grows"] == pytest.approx(0.05)
    said = table({"date": "d", "machine": "m", "commit": "c", "shape": "s", "threads": 2,
                  "cost": {"new": 128, **told}})  # fmt: skip
    assert "keep 0.980" in said
    assert "by 3.0 ms" in said


def test_percentiles_are_values_that_were_measured() -> None:
    assert beside.percentiles([3.0]) == {"p50": 3.0, "p95": 3.0, "p99": 3.0}
    assert beside.percentiles(list(range(100, 0, -1))) == {"p50": 51, "p95": 96, "p99": 100}


def test_times_are_of_pieces() -> None:
    heard = [Heard([1.0, 1.5, 3.0]), Heard([2.0, 2.5])]
    told = beside.figures(heard, [4.0, 6.0])
    assert told["first"]["p50"] == 2.0
    assert told["gap"] == {"p50": 0.5, "p95": 1.5, "p99": 1.5}
    assert told["rate"] == 5.0


def test_a_server_that_cannot_be_had_is_a_row_that_says_so() -> None:
    @contextmanager
    def missing() -> Any:
        raise OSError("not installed")
        yield

    rows = beside.measured({"other": missing()}, 1)
    assert rows == [{"server": "other", "skipped": "OSError: not installed"}]
    said = table({"date": "d", "machine": "m", "commit": "c", "shape": "s", "threads": 2,
                  "beside": rows})  # fmt: skip
    assert "left out: OSError: not installed" in said
