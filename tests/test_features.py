"""docs/features.md, which is made of the code, is what the code says."""

import pytest

from kvrt import spi
from tests.features import PAGE, PROTOCOLS, page


@pytest.fixture(scope="module")
def made() -> str:
    return page()


def test_the_page_of_features_is_what_the_code_says(made: str) -> None:
    assert PAGE.read_text(encoding="utf-8") == made, "run: python -m tests.features"


def test_every_family_has_a_model_that_its_features_are_read_off(made: str) -> None:
    rows = [line.split(" | ") for line in made.splitlines() if line.startswith("| `")]
    gemma = next(row for row in rows if row[0] == "| `Gemma3ForCausalLM`")
    assert gemma[1:4] == ["", "yes", ""], "windows, and neither experts nor recurrent layers"


def test_all_that_is_optional_for_a_backend_is_in_the_page() -> None:
    parts = {"Backend", "Device", "Graph", "Collective", "Invitation", "Ticket", "VirtualMemory",
             "Copier", "PagedAttention"}  # fmt: skip
    protocols = {name for name in spi.__all__ if getattr(getattr(spi, name), "_is_protocol", False)}
    assert {kind.__name__ for kind in PROTOCOLS} == protocols - parts
