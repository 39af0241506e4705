"""The table of rotations grows with the texts there are, not with those a model could have."""

import json
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from kvrt.model.decoder import rope
from kvrt.model.decoder.rope import RotationTable, inverse_frequencies, rotation_bytes
from kvrt.model.spec import RopeSpec
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.spi import Rotation

YARN = RopeSpec(1e4, "yarn", factor=4.0, original_positions=64, attention_factor=1.1)


@pytest.mark.parametrize("spec", [RopeSpec(1e4), YARN], ids=["plain", "yarn"])
def test_a_table_that_grew_is_that_of_the_whole(
    spec: RopeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rope, "BLOCK", 24)
    table = RotationTable(spec, 32, 200, "cpu")
    assert table.positions == 24
    for asked, has in ((25, 48), (100, 120), (190, 200)):
        some = Rotation(torch.empty(2, 16), torch.empty(2, 16))
        table.select(np.array([asked - 1, 3]), some)
        assert table.positions == has
        assert torch.equal(some.cos, table.rotation.cos[[asked - 1, 3]])
        assert torch.equal(some.sin, table.rotation.sin[[asked - 1, 3]])
    angles = torch.outer(torch.arange(200.0), inverse_frequencies(spec, 32))
    assert torch.equal(table.rotation.cos, angles.cos() * spec.attention_factor)
    assert torch.equal(table.rotation.sin, angles.sin() * spec.attention_factor)
    size = table.rotation.cos.nbytes + table.rotation.sin.nbytes
    assert size == rotation_bytes(32, table.positions)


def test_a_text_longer_than_the_table_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in recorded steps, which were recorded when the table was shorter."""
    wish, said = SamplingParams(max_tokens=120, ignore_eos=True), []
    for block in (rope.BLOCK, 32):
        monkeypatch.setattr(rope, "BLOCK", block)
        with Runtime("tiny", backend="cpu", memory_limit="64MiB", debug=True) as runtime:
            said.append([r.token_ids for r in runtime.generate([[5, 6, 7], [9] * 50], wish)])
    assert said[0] == said[1]


@pytest.mark.promise("P23")
def test_a_model_of_endless_context_takes_no_memory_for_it(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64,
        "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 64, "hidden_act": "silu",
        "max_position_embeddings": 1 << 28, "rms_norm_eps": 1e-5, "torch_dtype": "float32",
        "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    wish = SamplingParams(max_tokens=8, ignore_eos=True)
    options = {"backend": "cpu", "load_format": "dummy", "memory_limit": "64MiB"}
    with Runtime("tiny", backend="cpu", memory_limit="64MiB") as warm:
        warm.generate([[1]], wish)
    before = psutil.Process().memory_info().rss
    with Runtime(tmp_path, **options) as runtime:  # type: ignore[arg-type]
        assert runtime.generate([[1] * 9000], wish)[0].finish_reason == "length"
        assert psutil.Process().memory_info().rss - before < 200 << 20
