"""A ledger of a test's own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvrt.sharing.tenant import Tenant, Terms

TOTAL = 100
Join = Callable[..., Tenant]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "share" / "test.cpu0"


@pytest.fixture
def join(ledger: Path) -> Iterator[Join]:
    """Joins a share of 100 bytes, on terms; those that are left over leave at the end."""
    joined: list[Tenant] = []

    def join(name: str = "a", total: int | None = TOTAL, **terms: object) -> Tenant:
        joined.append(Tenant(ledger, total, Terms(name, **terms)))  # type: ignore[arg-type]
        return joined[-1]

    yield join
    for tenant in joined:
        tenant.close()
