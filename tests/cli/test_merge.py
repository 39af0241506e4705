"""``kvrt merge``."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.model.checkpoints import make_model, save_model, save_tokenizer

from .conftest import Kvrt


def test_two_models_become_one_that_runs(kvrt: Kvrt, tmp_path: Path) -> None:
    one, two = (
        str(save_tokenizer(save_model(make_model("llama-2", seed=n), tmp_path / f"m{n}")))
        for n in range(2)
    )
    out = tmp_path / "out"
    made = kvrt("merge", str(out), one, two, "--weight", "3", "--weight", "1")
    assert made.exit_code == 0, made.stderr
    merged, first, second = (
        load_file(Path(folder) / "model.safetensors")["lm_head.weight"]
        for folder in (out, one, two)
    )
    assert torch.allclose(merged, 0.75 * first + 0.25 * second, atol=1e-6)
    assert kvrt("run", str(out), "abc", "-n", "2", "--backend", "cpu").exit_code == 0
    again = kvrt("merge", str(out), one, two)
    assert again.exit_code == 2
    assert "exists" in again.stderr
    based = kvrt("merge", str(tmp_path / "ties"), two, "--base", one, "--method", "ties", "-q")
    assert based.exit_code == 0, based.stderr
    refused = kvrt("merge", str(tmp_path / "bad"), two, "--method", "ties")
    assert refused.exit_code == 2
    assert "ties needs the model that all were made from" in refused.stderr
