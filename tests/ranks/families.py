"""Models of the families that ranks can share, which differ in what they do with their parts."""

from typing import Any

_THREE = {
    "sliding_window": 21,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
FAMILIES: dict[str, dict[str, Any]] = {
    "one matrix for tokens": {"tie_word_embeddings": True},
    "one head of keys": {"num_key_value_heads": 1},
    "Qwen2": {"architectures": ["Qwen2ForCausalLM"], "attention_bias": True},
    "Qwen3": {"architectures": ["Qwen3ForCausalLM"]},
    "Gemma 3": {"architectures": ["Gemma3ForCausalLM"], "query_pre_attn_scalar": 8, **_THREE},
    "Cohere 2": {"architectures": ["Cohere2ForCausalLM"], **_THREE},
    "StarCoder 2": {
        "architectures": ["Starcoder2ForCausalLM"],
        "hidden_act": "gelu_pytorch_tanh",
    },
    "Phi-3": {"architectures": ["Phi3ForCausalLM"]},
    "Mixtral": {"architectures": ["MixtralForCausalLM"], "num_local_experts": 5},
    "Qwen2 MoE": {
        "architectures": ["Qwen2MoeForCausalLM"],
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 40,
        "shared_expert_intermediate_size": 57,
    },
}
