"""Tiny checkpoints of every supported family, with random weights, made by transformers.

They have the features of their family in the smallest shape that shows them: grouped heads, biases,
windows shorter than a prompt, layers without rotation, a head that is not hidden / heads wide.
"""

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)
from transformers.models.mistral4.modeling_mistral4 import Mistral4ForCausalLM

VOCAB = 275
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
LONGROPE = {
    "original_max_position_embeddings": 32,
    "rope_parameters": PLAIN_ROPE
    | {
        "rope_type": "longrope",
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 32,
        "short_factor": [1.0 + 0.1 * at for at in range(6)],
        "long_factor": [2.0 + 0.5 * at for at in range(6)],
    },
}
PHIMOE_ROPE = {
    "original_max_position_embeddings": 32,
    "rope_parameters": PLAIN_ROPE
    | {
        "rope_type": "longrope",
        "original_max_position_embeddings": 32,
        "short_factor": [1.0 + 0.1 * at for at in range(8)],
        "long_factor": [2.0 + 0.5 * at for at in range(8)],
        "short_mscale": 1.2,
        "long_mscale": 1.2,
    },
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}

SPACE = {
    "mamba_n_heads": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 20,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
GRANITE_SCALES = {
    "embedding_multiplier": 12.0,
    "logits_scaling": 8.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.0625,
}
MSCALED_ROPE = YARN_ROPE | {"beta_fast": 32.0, "beta_slow": 1.0}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama-2": {"model_type": "llama", "num_key_value_heads": 4},
    "llama-3": {
        "model_type": "llama",
        "rope_parameters": LLAMA3_ROPE,
        "tie_word_embeddings": True,
    },
    "llama-linear": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
        "hidden_act": "gelu_pytorch_tanh",
    },
    "llama-biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "smollm-2": {"model_type": "llama", "num_attention_heads": 3, "num_key_value_heads": 1,
                 "hidden_size": 48, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "sliding_window": 13, "head_dim": 32},
    "ministral-3": {
        "model_type": "ministral3",
        "head_dim": 32,
        "rope_parameters": YARN_ROPE | {"original_max_position_embeddings": 16, "mscale": 1.0,
                                        "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3},
    },
    "qwen-2": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 11,
        "max_window_layers": 1,
    },
    "qwen-2-types": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 12,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "qwen-2.5-yarn": {"model_type": "qwen2", "rope_parameters": YARN_ROPE},
    "qwen-3": {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True},
    "qwen-3-types": {
        "model_type": "qwen3",
        "use_sliding_window": True,
        "sliding_window": 9,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    },
    "gemma": {"model_type": "gemma", "head_dim": 32},
    "gemma-2": {"model_type": "gemma2", "head_dim": 32, "sliding_window": 9,
                "query_pre_attn_scalar": 24, "attn_logit_softcapping": 5.0,
                "final_logit_softcapping": 3.0, "tie_word_embeddings": True},
    "gemma-3": {"model_type": "gemma3_text", "head_dim": 32, "sliding_window": 9,
                "query_pre_attn_scalar": 24, "num_hidden_layers": 7, "tie_word_embeddings": True},
    "gemma-4": {"model_type": "gemma4_text", "head_dim": 32, "global_head_dim": 64,
                "num_global_key_value_heads": 1, "attention_k_eq_v": True,
                "hidden_size_per_layer_input": 0, "sliding_window": 9, "num_hidden_layers": 7,
                "final_logit_softcapping": 3.0, "tie_word_embeddings": True},
    "gemma-4-moe": {"model_type": "gemma4_text", "head_dim": 32, "global_head_dim": 48,
                    "hidden_size_per_layer_input": 0, "sliding_window": 9,
                    "num_hidden_layers": 4, "enable_moe_block": True, "num_experts": 6,
                    "top_k_experts": 3, "moe_intermediate_size": 40,
                    "layer_types": ["full_attention", "sliding_attention"] * 2,
                    "tie_word_embeddings": True},
    "granite": {"model_type": "granite", "embedding_multiplier": 12.0, "logits_scaling": 8.0,
                "residual_multiplier": 0.22, "attention_multiplier": 0.0625},
    "phi-3": {"model_type": "phi3", "sliding_window": 11,
              "rope_parameters": PLAIN_ROPE | {"partial_rotary_factor": 0.75}},
    "olmo-2": {"model_type": "olmo2"},
    "olmo-3": {"model_type": "olmo3", "sliding_window": 9, "num_hidden_layers": 5,
               "rope_parameters": {"full_attention": YARN_ROPE, "sliding_attention": PLAIN_ROPE}},
    "glm-4": {"model_type": "glm4", "head_dim": 32},
    "cohere": {"model_type": "cohere", "tie_word_embeddings": True, "logit_scale": 0.25},
    "cohere-2": {"model_type": "cohere2", "sliding_window": 9, "num_hidden_layers": 5,
                 "attention_bias": True},
    "exaone-4": {"model_type": "exaone4", "sliding_window": 9, "num_hidden_layers": 5},
    "exaone-4-small": {"model_type": "exaone4", "sliding_window": None,
                       "layer_types": ["full_attention"] * 3},
    "seed-oss": {"model_type": "seed_oss", "head_dim": 32},
    "ernie-4.5": {"model_type": "ernie4_5", "head_dim": 32, "use_bias": True},
    "arcee": {"model_type": "arcee"},
    "nemotron": {"model_type": "nemotron"},
    "starcoder-2": {"model_type": "starcoder2", "sliding_window": 13,
                    "tie_word_embeddings": True},
    "hunyuan": {
        "model_type": "hunyuan_v1_dense",
        "head_dim": 32,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "alpha": 50.0,
                            "factor": 1.0},
    },
    "phi-2": {"model_type": "phi"},
    "gpt-neox": {"model_type": "gpt_neox", "num_key_value_heads": 4},
    "gpt-neox-sequential": {"model_type": "gpt_neox", "num_key_value_heads": 4,
                            "use_parallel_residual": False, "hidden_act": "gelu_new",
                            "attention_bias": False},
    "gpt-2": {"model_type": "gpt2", "num_key_value_heads": 4, "n_inner": 96,
              "tie_word_embeddings": True},
    "apertus": {"model_type": "apertus", "rope_parameters": LLAMA3_ROPE},
    "stablelm": {"model_type": "stablelm", "use_qkv_bias": True},
    "mixtral": {"model_type": "mixtral", "sliding_window": 13, "num_local_experts": 5},
    "qwen-2-moe": {"model_type": "qwen2_moe", "num_experts": 6, "num_experts_per_tok": 3,
                   "moe_intermediate_size": 40, "shared_expert_intermediate_size": 56,
                   "mlp_only_layers": [1]},
    "qwen-3-moe": {"model_type": "qwen3_moe", "head_dim": 32, "num_experts": 8,
                   "num_experts_per_tok": 2, "moe_intermediate_size": 40,
                   "decoder_sparse_step": 2, "norm_topk_prob": True, "num_hidden_layers": 4},
    "olmoe": {"model_type": "olmoe", "num_experts": 8, "num_experts_per_tok": 3},
    "granite-moe": {"model_type": "granitemoe", "num_local_experts": 5, "num_experts_per_tok": 3,
                    "embedding_multiplier": 12.0, "logits_scaling": 8.0,
                    "residual_multiplier": 0.22, "attention_multiplier": 0.0625},
    "gpt-oss": {"model_type": "gpt_oss", "head_dim": 32, "num_local_experts": 5,
                "num_experts_per_tok": 3, "sliding_window": 9, "swiglu_limit": 0.75,
                "rope_parameters": YARN_ROPE | {"truncate": False}},
    "glm-4-moe": {"model_type": "glm4_moe", "head_dim": 32, "n_routed_experts": 16,
                  "num_experts_per_tok": 3, "moe_intermediate_size": 40, "n_group": 2,
                  "topk_group": 1, "routed_scaling_factor": 1.5, "use_qk_norm": True,
                  "n_shared_experts": 2},
    "llama-4": {"model_type": "llama4_text", "head_dim": 32, "intermediate_size_mlp": 80,
                "num_hidden_layers": 4, "no_rope_layers": [1, 1, 0, 1], "num_local_experts": 5,
                "interleave_moe_layer_step": 2, "floor_scale": 16, "attn_scale": 0.3},
    "dots-1": {"model_type": "dots1", "head_dim": 32, "n_routed_experts": 8,
               "num_experts_per_tok": 3, "moe_intermediate_size": 40, "n_shared_experts": 1,
               "first_k_dense_replace": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
               "sliding_window": 11, "max_window_layers": 2},
    "minimax-m2": {"model_type": "minimax_m2", "head_dim": 32, "num_local_experts": 9,
                   "num_experts_per_tok": 3,
                   "rope_parameters": PLAIN_ROPE | {"partial_rotary_factor": 0.5}},
    "phi-moe": {"model_type": "phimoe", "num_local_experts": 5, "sliding_window": 13,
                "router_jitter_noise": 0.2, "attention_bias": True, "lm_head_bias": True},
    "ernie-4.5-moe": {"model_type": "ernie4_5_moe", "moe_num_experts": 6, "moe_k": 3,
                      "moe_intermediate_size": 40, "use_bias": True},
    "lfm-2": {"model_type": "lfm2", "norm_eps": 1e-5, "conv_L_cache": 4, "conv_bias": True,
              "intermediate_size": 192, "block_multiple_of": 32, "tie_word_embeddings": True,
              "layer_types": ["conv", "full_attention", "conv"]},
    "lfm-2-moe": {"model_type": "lfm2_moe", "norm_eps": 1e-5, "conv_L_cache": 3,
                  "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 40,
                  "num_dense_layers": 1, "layer_types": ["conv", "conv", "full_attention"]},
    "deepseek-2": {"model_type": "deepseek_v2", **LATENT, "num_experts_per_tok": 2,
                   "n_routed_experts": 16, "n_shared_experts": 2, "moe_intermediate_size": 40,
                   "first_k_dense_replace": 1, "topk_method": "group_limited_greedy",
                   "n_group": 4, "topk_group": 2, "routed_scaling_factor": 3.0,
                   "rope_parameters": MSCALED_ROPE | {"mscale": 0.707, "mscale_all_dim": 0.707}},
    "deepseek-2-lite": {"model_type": "deepseek_v2", **LATENT, "q_lora_rank": None,
                        "num_experts_per_tok": 2, "n_routed_experts": 6, "n_shared_experts": 1,
                        "moe_intermediate_size": 40, "first_k_dense_replace": 1},
    "deepseek-3": {"model_type": "deepseek_v3", **LATENT, "num_experts_per_tok": 3,
                   "n_routed_experts": 16, "moe_intermediate_size": 40, "n_group": 4,
                   "topk_group": 2, "first_k_dense_replace": 1,
                   "rope_parameters": MSCALED_ROPE | {"mscale": 1.3, "mscale_all_dim": 0.8}},
    "moonlight": {"model_type": "deepseek_v3", **LATENT, "q_lora_rank": None, "n_group": 2,
                  "topk_group": 2, "num_experts_per_tok": 2, "n_routed_experts": 16,
                  "moe_intermediate_size": 40, "first_k_dense_replace": 2,
                  "rope_interleave": False},
    "glm-4.7-flash": {"model_type": "glm4_moe_lite", **LATENT, "num_experts_per_tok": 2,
                      "n_routed_experts": 6, "moe_intermediate_size": 40},
    "mistral-4": {"model_type": "mistral4", **LATENT, "num_experts_per_tok": 2,
                  "n_routed_experts": 6, "moe_intermediate_size": 40,
                  "rope_parameters": MSCALED_ROPE | {
                      "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3,
                      "original_max_position_embeddings": 16}},
    "youtu": {"model_type": "youtu", **LATENT},
    "qwen-3-next": {"model_type": "qwen3_next", "head_dim": 32, **DELTA, "num_experts": 12,
                    "num_experts_per_tok": 3, "moe_intermediate_size": 40,
                    "shared_expert_intermediate_size": 56, "mlp_only_layers": [1]},
    "qwen-3.5": {"model_type": "qwen3_5_text", "head_dim": 32, **DELTA},
    "qwen-3.5-moe": {"model_type": "qwen3_5_moe_text", "head_dim": 32, **DELTA, "num_experts": 12,
                     "num_experts_per_tok": 3, "moe_intermediate_size": 40,
                     "shared_expert_intermediate_size": 56},
    "kimi-linear": {"model_type": "kimi_linear", **LATENT, "q_lora_rank": None,
                    "num_local_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40,
                    "linear_head_dim": 16, "linear_num_heads": 4,
                    "mlp_layer_types": ["dense", "sparse", "sparse"],
                    "layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "olmo-hybrid": {"model_type": "olmo_hybrid", "linear_num_key_heads": 3,
                    "linear_num_value_heads": 3, "linear_key_head_dim": 20,
                    "linear_value_head_dim": 20,  # they write filters in three of equal width
                    "layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "granite-4": {"model_type": "granitemoehybrid", **SPACE, **GRANITE_SCALES,
                  "num_local_experts": 0, "shared_intermediate_size": 96,
                  "layer_types": ["mamba", "attention", "mamba"]},
    "granite-4-moe": {"model_type": "granitemoehybrid", **SPACE, **GRANITE_SCALES,
                      "num_local_experts": 5, "num_experts_per_tok": 3, "mamba_n_groups": 1,
                      "shared_intermediate_size": 40, "position_embedding_type": "rope",
                      "layer_types": ["mamba", "mamba", "attention"]},
    "bamba": {"model_type": "bamba", **SPACE, "attn_layer_indices": [1], "mamba_proj_bias": True,
              "attention_bias": True, "mlp_bias": True},
    "falcon-h1": {"model_type": "falcon_h1", **SPACE, "mamba_d_ssm": 96, "mamba_d_head": 12,
                  "head_dim": 32, "embedding_multiplier": 5.7, "lm_head_multiplier": 0.04,
                  "attention_in_multiplier": 1.3, "attention_out_multiplier": 0.7,
                  "key_multiplier": 0.4, "mlp_multipliers": [0.9, 0.3], "ssm_in_multiplier": 1.2,
                  "ssm_out_multiplier": 0.25, "ssm_multipliers": [0.35, 0.25, 0.18, 0.5, 0.35]},
    "falcon-h1-normed": {"model_type": "falcon_h1", **SPACE, "mamba_d_ssm": 96,
                         "mamba_d_head": 12, "mamba_rms_norm": True, "projectors_bias": True,
                         "mamba_norm_before_gate": True},
    "nemotron-h": {"model_type": "nemotron_h", "head_dim": 32, "mamba_num_heads": 8,
                   "mamba_head_dim": 12, "n_groups": 2, "ssm_state_size": 20, "chunk_size": 16,
                   "use_bias": True, "mlp_bias": True, "layer_norm_epsilon": 1e-5,
                   "num_hidden_layers": 5,
                   "layers_block_type": ["mamba", "mlp", "attention", "mamba", "mlp"]},
    "nemotron-3": {"model_type": "nemotron_h", "head_dim": 32, "mamba_num_heads": 8,
                   "mamba_head_dim": 12, "n_groups": 2, "ssm_state_size": 20, "chunk_size": 16,
                   "n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40,
                   "moe_shared_expert_intermediate_size": 56, "routed_scaling_factor": 2.5,
                   "layer_norm_epsilon": 1e-5, "num_hidden_layers": 4,
                   "layers_block_type": ["mamba", "moe", "attention", "moe"]},
    "smollm-3": {
        "model_type": "smollm3",
        "num_hidden_layers": 4,
        "no_rope_layers": [1, 0, 1, 0],
        "use_sliding_window": True,
        "sliding_window": 17,
        "tie_word_embeddings": True,
    },
}  # fmt: skip


SIGHT = {"hidden_size": 32, "intermediate_size": 48}
SEEING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gemma3": (
        FAMILIES["gemma-3"],
        SIGHT | {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32},
    ),
    "mistral3": (
        FAMILIES["mistral"],
        SIGHT | {"num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16},
    ),
    "mistral3, later": (
        FAMILIES["ministral-3"],
        SIGHT | {"num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16},
    ),
    "qwen2_5_vl": (
        {"rope_parameters": PLAIN_ROPE | {"mrope_section": [4, 2, 2]}},
        SIGHT | {"depth": 1, "num_heads": 2, "out_hidden_size": 64},
    ),
    "qwen3_vl": (
        {"head_dim": 32, "rope_parameters": PLAIN_ROPE | {"mrope_section": [8, 4, 4]}},
        SIGHT | {"depth": 1, "num_heads": 2, "out_hidden_size": 64, "deepstack_visual_indexes": []},
    ),
}
"""Model types that see: their decoders, and their eyes."""


def make_seeing(model_type: str) -> PreTrainedModel:
    """transformers' own model of a type that sees, likewise."""
    text, sight = SEEING[model_type]
    model_type = model_type.split(",")[0]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, text_config=BASE | text, vision_config=sight)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    return randomised(model)


def make_model(family: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """transformers' own model of a family, in float32, with random weights that matter.

    Its default weights are so small that attention hardly shows in the logits; these are larger,
    and biases and norms are not left at 0 and 1.
    """
    settings = BASE | FAMILIES[family] | changes
    torch.manual_seed(seed)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    made: Any = AutoModelForCausalLM.from_config
    if config.model_type == "mistral4":  # which it does not know
        made = Mistral4ForCausalLM._from_config
    return randomised(made(config, attn_implementation="eager").eval())


def randomised(model: PreTrainedModel) -> PreTrainedModel:
    """The model with random weights in place of its own, in float32."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0.0, 1.5 * parameter.shape[-1] ** -0.5)
            elif "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0.0, 0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.uniform_(0.5, 1.5)
    return model.float()


def save_model(
    model: PreTrainedModel, folder: Path, *, dtype: torch.dtype = torch.float32, shard: str = "5GB"
) -> Path:
    """Write a model as a Hugging Face folder, without a tokenizer."""
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    model.float()
    return folder


def save_tokenizer(folder: Path, kind: str = "bytes", **settings: Any) -> Path:
    """Write a tokenizer of at most `VOCAB` ids: ``bytes``, as Llama 3's, or ``pieces``, as 2's."""
    tokenizer = byte_tokenizer() if kind == "bytes" else piece_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def byte_tokenizer() -> tokenizers.Tokenizer:
    """Byte-level: each byte is a token, and none is ever unknown."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<unk>", "<s>", "</s>", *alphabet]
    tokenizer = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def piece_tokenizer() -> tokenizers.Tokenizer:
    """SentencePiece-like: words begin with ▁, and what is not in the vocabulary becomes bytes."""
    special = ["<unk>", "<s>", "</s>"]
    letters = ["▁", "a", "e", "h", "l", "o", "é", "."]
    merges = [("▁", "a"), ("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello")]
    pieces = [*letters, *(left + right for left, right in merges)]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(special)
    return tokenizer
