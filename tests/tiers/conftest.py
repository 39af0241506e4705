"""What holds for all tests of the tiers."""

from collections.abc import Iterator

import pytest

from kvrt.kv.tiers import space
from kvrt.registry import open_device
from kvrt.spi import Copier, Device

from .pages import FORM


@pytest.fixture(autouse=True)
def files_grow_by_a_few_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that growing happens often, and files stay small."""
    monkeypatch.setattr(space, "STEP", 4 * FORM.page_stride)


@pytest.fixture
def null_device() -> Iterator[Device]:
    device = open_device("null")
    yield device
    device.close()


@pytest.fixture
def copier(null_device: Device) -> Copier:
    return null_device.copier
