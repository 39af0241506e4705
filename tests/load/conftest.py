"""A server that is measured."""

from collections.abc import Iterator

import pytest

from tests.cli.conftest import kvrt as kvrt
from tests.cli.conftest import start as start
from tests.server.conftest import Server, started


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(tmp_path_factory.mktemp("measured")) as server:
        yield server
