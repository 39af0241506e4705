"""docs/models.md has the families that are there."""

import re
from pathlib import Path

from kvrt.model.families.decoders import FAMILIES, NESTED
from kvrt.model.gguf.architectures import ARCHITECTURES

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_page_lists_every_architecture_and_its_name_in_gguf() -> None:
    rows = [line.split("|")[1:3] for line in PAGE.read_text().splitlines() if line[:3] == "| `"]
    said, gguf = (
        re.findall(r"`([\w.-]+)`", " ".join(column)) for column in zip(*rows, strict=True)
    )
    assert sorted(said) == sorted([*FAMILIES, *NESTED])
    assert set(gguf) == set(ARCHITECTURES)
