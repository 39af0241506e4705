"""``kvrt models``."""

import json
import re
from pathlib import Path

from kvrt.model.families.decoders import FAMILIES, NESTED

from .conftest import Kvrt


def test_models_lists_every_architecture_with_its_names_in_gguf(kvrt: Kvrt) -> None:
    plain = kvrt("models").stdout.splitlines()
    assert [line.split()[0] for line in plain] == [*FAMILIES, *NESTED]
    assert "Gemma3ForCausalLM gemma3" in [" ".join(line.split()) for line in plain]
    given = json.loads(kvrt("models", "--json").stdout)
    assert [row["architecture"] for row in given] == [*FAMILIES, *NESTED]
    assert {"architecture": "MistralForCausalLM", "gguf": ["llama"]} in given
    assert {"architecture": "Ministral3ForCausalLM", "gguf": []} in given


def test_it_says_of_gguf_what_the_page_of_models_says(kvrt: Kvrt) -> None:
    given = json.loads(kvrt("models", "--json").stdout)
    listed = {row["architecture"]: set(row["gguf"]) for row in given}
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    for line in page.splitlines():
        if line.startswith("| `"):
            names, gguf = (re.findall(r"`([\w.-]+)`", part) for part in line.split("|")[1:3])
            said = set().union(*(listed[name] for name in names))
            assert set(gguf) <= said, line
