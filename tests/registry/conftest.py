"""A checked device over one that records what reaches it."""

from collections.abc import Iterator

import pytest

from kvrt import registry
from kvrt.spi import Device
from kvrt.wrappers import Call, Checked, Traced


@pytest.fixture
def calls() -> list[Call]:
    """What has reached the device behind the checks."""
    return []


@pytest.fixture
def device(calls: list[Call]) -> Iterator[Device]:
    checked = Checked(Traced(registry.load("null", timeout=60).open(), calls.append))
    yield checked
    checked.close()
