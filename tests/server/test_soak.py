"""A server that is asked by a crowd, of which some leave.

pytest -m extra tests/server/test_soak.py            10 minutes of 64 clients
SOAK_MINUTES=30 pytest -m extra tests/server/test_soak.py
"""

import asyncio
import json
import os
import statistics
import threading
import time

import psutil
import pytest

from .clients import Crowd
from .conftest import Serve, Server, until

MINUTES = float(os.environ.get("SOAK_MINUTES", "10"))
GROWTH = 24 << 20
"""Bytes that a server may have more in the last third of the time than in the second."""


class Watch:
    """Looks at a server's memory, again and again, until it is told to end."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._end = threading.Event()
        self.rss: list[int] = []
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._end.wait(0.25):
            self.rss.append(self._server.rss)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


@pytest.mark.promise("P14", "P39", "P40")
@pytest.mark.timeout(60 * MINUTES + 480)
@pytest.mark.parametrize(
    ("clients", "seconds"),
    [(16, 2.0), pytest.param(64, 60 * MINUTES, marks=pytest.mark.extra)],
)
def test_a_crowd_of_which_some_leave_leaves_nothing_behind(
    serve: Serve, clients: int, seconds: float
) -> None:
    server = serve("--memory-limit", "48MiB")  # which cached pages fill before it is watched
    process = psutil.Process(server.process.pid)

    def told() -> dict[str, int]:
        found: dict[str, int] = json.loads(server.ask("GET", "/status")[2])["server"]
        return found

    def rests() -> bool:
        found = told()
        return found["taken"] == found["running"] == found["waiting"] == server.used_pages == 0

    asyncio.run(Crowd(server.port).run(clients, seconds / 5, 1))  # all that is made once is made
    until(rests)
    descriptors, threads, tasks = process.num_fds(), process.num_threads(), told()["tasks"]
    before = server.metrics()
    crowd = Crowd(server.port)
    with Watch(server) as watch:
        asyncio.run(crowd.run(clients, seconds, 2))
    counts = crowd.counts
    asked = counts.total()
    assert counts["200"] > 0.85 * asked > clients
    assert set(counts) <= {"200", "left", "aborted"}, counts
    until(rests)
    until(lambda: process.num_fds() <= descriptors)
    until(lambda: told()["tasks"] <= tasks)
    assert process.num_threads() <= threads + 1
    third = len(watch.rss) // 3
    early, late = watch.rss[third : 2 * third], watch.rss[2 * third :]
    assert statistics.median(late) - statistics.median(early) < GROWTH
    after = server.metrics()
    ended = {
        outcome: after.get(f"kvrt_requests_total,outcome={outcome}", 0)
        - before.get(f"kvrt_requests_total,outcome={outcome}", 0)
        for outcome in ("stop", "length", "abort", "error")
    }
    assert ended["error"] == 0
    assert counts["200"] <= sum(ended.values()) <= asked
    assert ended["stop"] + ended["length"] >= counts["200"]
    assert "Traceback" not in server.said()
    begun = time.monotonic()
    assert server.end() == 0
    assert time.monotonic() - begun < 30
