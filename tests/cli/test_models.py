"""``kvrt models``."""

import json

from kvrt.model.families import FAMILIES, NESTED

from .conftest import Kvrt


def test_models_lists_every_architecture_with_its_names_in_gguf(kvrt: Kvrt) -> None:
    plain = kvrt("models").stdout.splitlines()
    assert [line.split()[0] for line in plain] == [*FAMILIES, *NESTED]
    assert "Gemma3ForCausalLM gemma3" in [" ".join(line.split()) for line in plain]
    given = json.loads(kvrt("models", "--json").stdout)
    assert [row["architecture"] for row in given] == [*FAMILIES, *NESTED]
    assert {"architecture": "MistralForCausalLM", "gguf": ["llama"]} in given
    assert {"architecture": "Ministral3ForCausalLM", "gguf": []} in given
