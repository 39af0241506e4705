"""What holds for all tests of the tiers."""

import pytest

from kvrt.tiers import space

from .pages import FORM


@pytest.fixture(autouse=True)
def files_grow_by_a_few_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that growing happens often, and files stay small."""
    monkeypatch.setattr(space, "STEP", 4 * FORM.page_stride)
