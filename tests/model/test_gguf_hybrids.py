"""GGUF files of models with recurrent layers compute what transformers computes of the model that
they were made from."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kvrt.model.loader import load_model
from kvrt.spi import Device
from tests.model.checkpoints import make_model, save_model
from tests.model.hybrid_ggufs import save_hybrid
from tests.model.stepping import stepping
from tests.model.test_families import assert_close, prompt

FAMILIES: dict[str, dict[str, Any]] = {
    "granite-4": {},
    "granite-4-moe": {"position_embedding_type": None},
    "qwen-3-next": {"mlp_only_layers": []},
    "qwen-3.5": {},
    "qwen-3.5-moe": {},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_hybrids_file_computes_what_its_model_does(
    tmp_path: Path, family: str, cpu: Device
) -> None:
    reference = make_model(family, **FAMILIES[family])
    file = save_hybrid(save_model(reference, tmp_path), tmp_path / "model.gguf")
    model = load_model(file, cpu)
    with stepping(model, cpu, texts=1, longest=60) as stepper:
        text = stepper.add(prompt(60))
        stepper.step([(text, 23)])
        stepper.step([(text, 37)])
    with torch.no_grad():
        assert_close(text.logits, reference(torch.tensor([text.tokens])).logits[0])
