"""What keeps the batches of tests: SQLite, and PostgreSQL where it is installed."""

from collections.abc import Iterator

import pytest

from .cluster import cluster, programs

KEEPERS = ("sqlite", "postgres")


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a database of the tests' own."""
    found = programs()
    if found is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with cluster(found) as url:
        yield url


@pytest.fixture(params=KEEPERS)
def database(request: pytest.FixtureRequest) -> str | None:
    """What keeps batches: a URL, or None for SQLite."""
    return request.getfixturevalue("postgres") if request.param == "postgres" else None
