"""The simulator of `ci/placement` loses nobody, and what it is for holds on a short trace."""

from math import isinf

import pytest

from .placement import DONE, KINDS, Kind, Simulation, Trace, goodput

SHORT = Trace(0.9, 8, 2.0)


@pytest.mark.parametrize("kind", KINDS)
def test_each_request_is_served_once_and_in_its_time(kind: Kind) -> None:
    requests = SHORT.requests(400, 0)
    simulation = Simulation(requests, kind, 1.0)
    simulation.run()
    served = [request for request in requests if not isinf(request.first)]
    assert all(request.at < request.first for request in served)
    assert all(request.left <= DONE for request in served), "and to its end"
    if kind == "static":
        assert {request.model for request in served} == simulation.placed
    else:
        assert len(served) == len(requests)
        assert not any(member.running for member in simulation.fleet.members.values())


def test_where_more_is_wanted_than_fits_what_has_missed_its_objective_waits() -> None:
    """Else models go for each other all the time, and all of them miss it."""
    steady = Trace(0.9, 1, 2.0)
    ours, lru = (goodput(steady, kind, 0.5, number=1000) for kind in ("kvrt", "lru"))
    assert ours > lru + 0.05
