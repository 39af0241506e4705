"""The families of decoders, as rows of facts: what an architecture's name says that its config.json
does not.

A family that needs nothing new is one row here, the names of its tensors in
`kvrt.model.weights.names` where they are not Llama's, and one row of the tests.
"""

from collections.abc import Mapping

from kvrt.model.families.family import ATTENTION_BIAS, LAYER_NORM, Family
from kvrt.model.families.gemma4 import GEMMA4
from kvrt.model.families.hybrids import HYBRIDS
from kvrt.model.families.latents import LATENTS
from kvrt.model.families.mixtures import MIXTURES
from kvrt.model.families.scales import (
    cohere_scales,
    gemma3_scales,
    gemma_scales,
    granite_scales,
    ministral_scales,
    neox_switches,
)
from kvrt.model.families.spaces import SPACES
from kvrt.model.families.windows import (
    DEFAULT_WINDOW,
    exaone_layers,
    learned_layers,
    mixed,
    qwen_layers,
    smollm3_layers,
    windowed_layers,
)

_MINISTRAL_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16_384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_APERTUS_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 12_000_000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
_GEMMA = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
_GEMMA3 = _GEMMA | {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131_072,
}

FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(
        "llama", qkv_bias=ATTENTION_BIAS, o_bias=ATTENTION_BIAS, mlp_bias="mlp_bias"
    ),
    "MistralForCausalLM": Family(
        "mistral",
        windowed_layers,
        defaults={"num_key_value_heads": 8, "sliding_window": DEFAULT_WINDOW},
    ),
    "Qwen2ForCausalLM": Family(
        "qwen2", qwen_layers, qkv_bias=True, defaults={"num_key_value_heads": 32}
    ),
    "Qwen3ForCausalLM": Family(
        "qwen3",
        qwen_layers,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        defaults={"num_key_value_heads": 32, "head_dim": 128},
        switches={"qk_norm": "heads"},
    ),
    "SmolLM3ForCausalLM": Family(
        "smollm3",
        smollm3_layers,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        mlp_bias="mlp_bias",
        theta=2_000_000.0,
        defaults={"num_key_value_heads": 4, "tie_word_embeddings": True},
    ),
    "Ministral3ForCausalLM": Family(
        "ministral3",
        windowed_layers,
        ministral_scales,
        defaults={"num_key_value_heads": 8, "head_dim": 128, "rope_parameters": _MINISTRAL_ROPE},
    ),
    "GemmaForCausalLM": Family(
        "gemma",
        scales=gemma_scales,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        defaults={**_GEMMA, "hidden_act": "gelu_pytorch_tanh", "num_key_value_heads": 16},
        switches={"naming": "gemma"},
    ),
    "Gemma2ForCausalLM": Family(
        "gemma2",
        mixed(2),
        gemma3_scales,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        activation="hidden_activation",
        defaults=_GEMMA
        | {
            "num_key_value_heads": 4,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        switches={"naming": "gemma2"},
    ),
    "Gemma3ForCausalLM": Family(
        "gemma3_text",
        mixed(6, local=1),
        gemma3_scales,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        activation="hidden_activation",
        theta=1_000_000.0,
        local_theta=10_000.0,
        stretched=True,
        defaults=_GEMMA3,
        refused={"use_bidirectional_attention": False},
        switches={"naming": "gemma2", "qk_norm": "heads"},
    ),
    "GraniteForCausalLM": Family(
        "granite",
        scales=granite_scales,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        mlp_bias="mlp_bias",
    ),
    "Phi3ForCausalLM": Family("phi3", windowed_layers, partial=1.0, switches={"naming": "phi3"}),
    "Olmo2ForCausalLM": Family(
        "olmo2",
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        switches={"naming": "olmo2", "qk_norm": "whole"},
    ),
    "Olmo3ForCausalLM": Family(
        "olmo3",
        mixed(4, local=1),
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        theta=500_000.0,
        local_theta=500_000.0,
        switches={"naming": "olmo2", "qk_norm": "whole"},
    ),
    "Glm4ForCausalLM": Family(
        "glm4",
        qkv_bias=ATTENTION_BIAS,
        partial=0.5,
        defaults={"num_key_value_heads": 2, "head_dim": 128, ATTENTION_BIAS: True},
        switches={"naming": "glm4"},
    ),
    "CohereForCausalLM": Family(
        "cohere",
        scales=cohere_scales,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        eps=LAYER_NORM,
        theta=500_000.0,
        defaults={LAYER_NORM: 1e-5, "tie_word_embeddings": True},
        refused={"use_qk_norm": False},
        switches={"naming": "cohere", "norm": "layer", "parallel": True},
    ),
    "Cohere2ForCausalLM": Family(
        "cohere2",
        mixed(4, whole=None),
        cohere_scales,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        eps=LAYER_NORM,
        defaults={LAYER_NORM: 1e-5, "tie_word_embeddings": True},
        switches={"naming": "cohere", "norm": "layer", "parallel": True},
    ),
    "Exaone4ForCausalLM": Family(
        "exaone4",
        exaone_layers,
        defaults={"num_key_value_heads": 32},
        switches={"naming": "olmo2", "qk_norm": "heads"},
    ),
    "SeedOssForCausalLM": Family(
        "seed_oss",
        qkv_bias=ATTENTION_BIAS,
        o_bias="attention_out_bias",
        mlp_bias="mlp_bias",
        defaults={"num_key_value_heads": 8, "head_dim": 128, ATTENTION_BIAS: True},
        switches={"naming": "seed_oss"},
    ),
    "Ernie4_5ForCausalLM": Family(
        "ernie4_5",
        qkv_bias="use_bias",
        o_bias="use_bias",
        mlp_bias="use_bias",
        theta=500_000.0,
        defaults={"num_key_value_heads": 2, "head_dim": 128, "tie_word_embeddings": True},
        switches={"naming": "paired"},
    ),
    "ArceeForCausalLM": Family(
        "arcee",
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        mlp_bias="mlp_bias",
        defaults={"hidden_act": "relu2"},
        switches={"naming": "arcee", "gated": False},
    ),
    "NemotronForCausalLM": Family(
        "nemotron",
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        mlp_bias="mlp_bias",
        eps="norm_eps",
        partial=0.5,
        defaults={"hidden_act": "relu2", "norm_eps": 1e-5},
        switches={"naming": "nemotron", "norm": "layer", "norm_bias": True, "gated": False},
    ),
    "Starcoder2ForCausalLM": Family(
        "starcoder2",
        windowed_layers,
        qkv_bias="use_bias",
        o_bias="use_bias",
        mlp_bias="use_bias",
        eps="norm_epsilon",
        defaults={
            "num_key_value_heads": 2,
            "hidden_act": "gelu_pytorch_tanh",
            "norm_epsilon": 1e-5,
            "use_bias": True,
            "tie_word_embeddings": True,
        },
        switches={"naming": "starcoder2", "norm": "layer", "norm_bias": True, "gated": False},
    ),
    "HunYuanDenseV1ForCausalLM": Family(
        "hunyuan_v1_dense",
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        stretched_base=True,
        switches={"naming": "hunyuan", "qk_norm": "rotated"},
    ),
    "PhiForCausalLM": Family(
        "phi",
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        eps=LAYER_NORM,
        partial=0.5,
        defaults={"hidden_act": "gelu_new", LAYER_NORM: 1e-5},
        refused={"qk_layernorm": False},
        switches={
            "naming": "phi",
            "norm": "layer",
            "norm_bias": True,
            "gated": False,
            "parallel": True,
            "head_bias": True,
        },
    ),
    "GPTNeoXForCausalLM": Family(
        "gpt_neox",
        scales=neox_switches,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        mlp_bias=True,
        eps=LAYER_NORM,
        partial=0.25,
        renamed={"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"},
        defaults={"hidden_act": "gelu", LAYER_NORM: 1e-5, ATTENTION_BIAS: True},
        switches={"naming": "gpt_neox", "norm": "layer", "norm_bias": True, "gated": False},
    ),
    "GPT2LMHeadModel": Family(
        "gpt2",
        learned_layers,
        learned=True,
        wide=4,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        eps="layer_norm_epsilon",
        activation="activation_function",
        renamed={
            "n_embd": "hidden_size",
            "n_layer": "num_hidden_layers",
            "n_head": "num_attention_heads",
            "n_inner": "intermediate_size",
            "n_positions": "max_position_embeddings",
        },
        defaults={
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
        },
        refused={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
        switches={"naming": "gpt2", "norm": "layer", "norm_bias": True, "gated": False},
    ),
    "ApertusForCausalLM": Family(
        "apertus",
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        own_activation="xielu",
        theta=12_000_000.0,
        defaults={"hidden_act": "xielu", "rope_parameters": _APERTUS_ROPE},
        switches={"naming": "apertus", "qk_norm": "heads", "gated": False},
    ),
    "StableLmForCausalLM": Family(
        "stablelm",
        qkv_bias="use_qkv_bias",
        eps=LAYER_NORM,
        partial=0.25,
        defaults={"num_key_value_heads": 32, LAYER_NORM: 1e-5},
        refused={"qk_layernorm": False, "use_parallel_residual": False},
        switches={"norm": "layer", "norm_bias": True},
    ),
    **MIXTURES,
    **GEMMA4,
    **HYBRIDS,
    **SPACES,
    **LATENTS,
}

NESTED: Mapping[str, Mapping[str, str]] = {
    "Kimi_K25ForConditionalGeneration": {
        "deepseek_v3": "DeepseekV3ForCausalLM",
        "kimi_k2": "DeepseekV3ForCausalLM",
    },
    "Gemma3ForConditionalGeneration": {"gemma3_text": "Gemma3ForCausalLM"},
    "Gemma4ForConditionalGeneration": {"gemma4_text": "Gemma4ForCausalLM"},
    "Llama4ForConditionalGeneration": {"llama4_text": "Llama4ForCausalLM"},
    "Mistral3ForConditionalGeneration": {
        "mistral": "MistralForCausalLM",
        "ministral3": "Ministral3ForCausalLM",
        "mistral4": "Mistral4ForCausalLM",
    },
    "Qwen2VLForConditionalGeneration": {"qwen2_vl_text": "Qwen2ForCausalLM"},
    "Qwen2_5_VLForConditionalGeneration": {"qwen2_5_vl_text": "Qwen2ForCausalLM"},
    "Qwen3VLForConditionalGeneration": {"qwen3_vl_text": "Qwen3ForCausalLM"},
    "Qwen3_5ForConditionalGeneration": {"qwen3_5_text": "Qwen3_5ForCausalLM"},
    "Qwen3_5MoeForConditionalGeneration": {"qwen3_5_moe_text": "Qwen3_5MoeForCausalLM"},
}
"""Models that see, and whose decoder of text they have, by its ``model_type``: that is what is read
of them. Where nothing says which, it is the first."""
