"""Checkpoints of models with latents as they are published."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvrt.errors import ModelError
from kvrt.model.loader import load_model
from kvrt.spi import Device
from tests.model.checkpoints import make_model, save_model, save_tokenizer

BLOCK = 16


def in_blocks(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A matrix as E4M3 with a scale for each block, and the numbers that this stands for."""
    rows, width = matrix.shape
    padded = torch.zeros(-(-rows // BLOCK) * BLOCK, -(-width // BLOCK) * BLOCK)
    padded[:rows, :width] = matrix
    blocks = padded.view(padded.shape[0] // BLOCK, BLOCK, -1, BLOCK)
    scales = blocks.abs().amax((1, 3)) / 448
    codes = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
    values = (codes.float() * scales[:, None, :, None]).view(padded.shape)[:rows, :width]
    return codes.view(padded.shape)[:rows, :width].contiguous(), scales, values.contiguous()


@pytest.mark.parametrize("family", ["deepseek-3", "moonlight"])
def test_a_checkpoint_in_e4m3_by_blocks_is_the_numbers_it_stands_for(
    tmp_path: Path, cpu: Device, family: str
) -> None:
    folder = save_tokenizer(save_model(make_model(family), tmp_path))
    weights = load_file(folder / "model.safetensors")
    stored, meant = dict(weights), dict(weights)
    for name, matrix in weights.items():
        if name.endswith("_proj.weight"):
            stored[name], stored[f"{name}_scale_inv"], meant[name] = in_blocks(matrix)
    save_file(meant, folder / "model.safetensors", {"format": "pt"})
    want = load_model(folder, cpu)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    given = load_model(folder, cpu, dtype="float32")
    for one, other in zip(given.decoder.weights.layers, want.decoder.weights.layers, strict=True):
        for field in ("qkv", "q_up", "key_up", "value_up", "o", "down"):
            left, right = getattr(one, field), getattr(other, field)
            assert left is right or torch.equal(left, right), field


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("deepseek-3", {"attention_bias": True}, "attention_bias is not supported"),
        ("deepseek-3", {"moe_layer_freq": 2}, "moe_layer_freq other than 1 is not supported"),
        ("deepseek-3", {"qk_rope_head_dim": 15}, "qk_rope_head_dim is 15; rotation needs an even"),
        ("deepseek-3", {"kv_lora_rank": None}, "kv_lora_rank is null; expected an integer"),
        ("deepseek-2", {"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'; supported are"),
        ("deepseek-2", {"norm_topk_prob": True}, "norm_topk_prob is not supported"),
        ("mistral-4", {"rope_interleave": False}, "rope_interleave is not supported"),
        ("glm-4.7-flash", {"mlp_layer_types": ["dense", "odd", "sparse"]}, "mlp_layer_types must"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(
    tmp_path: Path, cpu: Device, family: str, changes: dict[str, object], message: str
) -> None:
    folder = save_model(make_model(family), tmp_path)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        load_model(folder, cpu)
