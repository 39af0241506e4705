"""``kvrt run --adapter``."""

import json
from pathlib import Path

from tests.model.adapters import make_adapter, merged, save_adapter
from tests.model.checkpoints import make_model, save_model, save_tokenizer

from .conftest import Kvrt


def test_an_adapter_answers_as_weights_that_it_is_merged_into(kvrt: Kvrt, tmp_path: Path) -> None:
    reference = make_model("llama-2")
    matrices = make_adapter(reference)
    plain = save_tokenizer(save_model(reference, tmp_path / "plain"))
    whole = save_tokenizer(save_model(merged(reference, matrices), tmp_path / "merged"))
    adapter = save_adapter(tmp_path / "adapter", matrices)
    options = ("abc", "-n", "12", "--ignore-eos", "--backend", "cpu", "--json")

    def ids(*args: str) -> list[int]:
        return json.loads(kvrt("run", *args, *options).stdout)["token_ids"]

    assert ids(str(plain), "--adapter", str(adapter)) == ids(str(whole)) != ids(str(plain))
    refused = kvrt("run", str(plain), "--adapter", str(tmp_path), *options)
    assert refused.exit_code == 3
    assert "adapter_config.json" in refused.stderr
