"""A real `kvrt route` before real servers of the bundled model, each a process of its own."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import Server, launch, listening, started, until

Route = Callable[..., Server]


@contextmanager
def publishing(folder: Path, *args: str) -> Iterator[tuple[Server, str]]:
    """A server that publishes what is cached, and its address as a router is given it."""
    events, replay = f"ipc://{folder}/events", f"ipc://{folder}/replay"
    with started(folder, "--kv-events", events, "--kv-events-replay", replay, *args) as server:
        yield server, f"{server.url},{events},{replay}"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[Server, str]]]:
    """Two servers that go on, and their addresses."""
    with ExitStack() as running:
        yield [running.enter_context(publishing(tmp_path_factory.mktemp(name))) for name in "ab"]


@pytest.fixture
def route(tmp_path: Path) -> Iterator[Route]:
    """Starts a router before servers, which are ready then."""
    with ExitStack() as running:

        def start(
            *args: str, ready: int | None = None, headers: dict[str, str] | None = None
        ) -> Server:
            log = tmp_path / "route.log"
            router = launch(log, *args, "--port", "0", command="route")
            router.headers = headers or {}
            running.enter_context(listening(router))
            servers = sum(arg.startswith("http://") for arg in args)
            until(lambda: ups(router) == (servers if ready is None else ready))
            return router

        yield start


def replicas(router: Server) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(router.ask("GET", "/replicas")[2])["data"]
    return found


def ups(router: Server) -> int:
    return sum(each["state"] == "up" for each in replicas(router))
