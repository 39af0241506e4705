"""What checkpoints call the tensors of a decoder, and how their rows lie there.

A row of a naming is one tensor of the decoder: its name in safetensors, its name in GGUF files, and
what is to be done with its rows as they come from safetensors. A norm or bias that a naming does
not have is one that the model does not have; rows that it has together under one name (``qkv`` in
place of ``q``, ``k`` and ``v``) are one tensor in its files.
"""

from collections.abc import Mapping

from kvrt.model.weights.hybrids import HYBRIDS
from kvrt.model.weights.naming import (
    LLAMA,
    PAIRED,
    QWEN2_MOE,
    Name,
    Naming,
    RowOrder,
    correction,
    experts,
    layer,
    less_one,
    shared,
    without,
)


def _neox(name: str, gguf: str, order: RowOrder = "") -> Name:
    return Name(f"gpt_neox.layers.{{}}.{name}", f"blk.{{}}.{gguf}", order)


def _gpt2(name: str, gguf: str, columns: bool = True) -> Name:
    return Name(f"transformer.h.{{}}.{name}", f"blk.{{}}.{gguf}", columns=columns)


_FUSED_MLP: Naming = {
    **without(LLAMA, "gate", "up"),
    "gate_up": layer("mlp.gate_up_proj", "ffn_up"),
}


_GPT_OSS: Naming = {
    **experts("mlp", router="router"),
    "sinks": Name("model.layers.{}.self_attn.sinks", "blk.{}.attn_sinks", bare=True),
    "mlp_norm": layer("post_attention_layernorm", "post_attention_norm"),
}
_GRANITE_MOE: Naming = {
    **experts("mlp"),
    "router": layer("block_sparse_moe.router.layer", "ffn_gate_inp"),
}

_GPT2: Naming = {
    "embedding": Name("transformer.wte", "token_embd"),
    "positions": Name("transformer.wpe", "position_embd"),
    "attention_norm": _gpt2("ln_1", "attn_norm", columns=False),
    "qkv": _gpt2("attn.c_attn", "attn_qkv"),
    "o": _gpt2("attn.c_proj", "attn_output"),
    "mlp_norm": _gpt2("ln_2", "ffn_norm", columns=False),
    "up": _gpt2("mlp.c_fc", "ffn_up"),
    "down": _gpt2("mlp.c_proj", "ffn_down"),
    "final_norm": Name("transformer.ln_f", "output_norm"),
    "head": LLAMA["head"],
}
_HALVED_LATENTS: Naming = {
    **without(experts("mlp"), "k", "v", "q_norm", "k_norm"),
    **shared("mlp.shared_experts"),
    "correction": correction("mlp.gate"),
    "q_down": layer("self_attn.q_a_proj", "attn_q_a"),
    "query_norm": layer("self_attn.q_a_layernorm", "attn_q_a_norm"),
    "q_up": layer("self_attn.q_b_proj", "attn_q_b"),
    "kv_down": layer("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
    "latent_norm": layer("self_attn.kv_a_layernorm", "attn_kv_a_norm"),
    "kv_up": layer("self_attn.kv_b_proj", "attn_kv_b", "absorbed"),
}
_LATENTS: Naming = {
    part: name._replace(order="pairs") if part in ("q", "q_up", "kv_down") else name
    for part, name in _HALVED_LATENTS.items()
}

_GEMMA2: Naming = {
    **LLAMA,
    "attention_post_norm": layer("post_attention_layernorm", "post_attention_norm"),
    "mlp_norm": layer("pre_feedforward_layernorm", "ffn_norm"),
    "mlp_post_norm": layer("post_feedforward_layernorm", "post_ffw_norm"),
}
_GEMMA4: Naming = {
    **_GEMMA2,
    "layer_scale": layer("layer_scalar", "layer_output_scale")._replace(bare=True),
}

NAMINGS: Mapping[str, Naming] = {
    "llama": LLAMA,
    "mixtral": experts("block_sparse_moe", of=("w1", "w3", "w2")),
    "moe": experts("mlp"),
    "granite_moe": {
        **without(_GRANITE_MOE, "expert_gate", "expert_up"),
        "expert_gate_up": layer("block_sparse_moe.input_linear.{}", "ffn_gate_up_exps.{}"),
        "expert_down": layer("block_sparse_moe.output_linear.{}", "ffn_down_exps.{}"),
    },
    "granite_moe_gguf": _GRANITE_MOE,
    "gpt_oss": {
        **without(_GPT_OSS, "expert_gate", "expert_up"),
        "expert_gate_up": layer("mlp.experts.{}.gate_up_proj", "ffn_gate_up_exps.{}")._replace(
            order="turns", columns=True
        ),
        "expert_down": _GPT_OSS["expert_down"]._replace(columns=True),
    },
    "gpt_oss_gguf": _GPT_OSS,
    "glm4_moe": {
        **experts("mlp"),
        **shared("mlp.shared_experts"),
        "correction": correction("mlp.gate"),
        "mlp_norm": layer("post_attention_layernorm", "post_attention_norm"),
    },
    "llama4": {
        **without(experts("feed_forward", router="router"), "expert_gate", "expert_up"),
        **shared("feed_forward.shared_expert"),
        "q": PAIRED["q"],
        "k": PAIRED["k"],
        "gate": layer("feed_forward.gate_proj", "ffn_gate"),
        "up": layer("feed_forward.up_proj", "ffn_up"),
        "down": layer("feed_forward.down_proj", "ffn_down"),
        "expert_gate_up": layer(
            "feed_forward.experts.{}.gate_up_proj", "ffn_gate_up_exps.{}"
        )._replace(columns=True),
        "expert_down": layer("feed_forward.experts.{}.down_proj", "ffn_down_exps.{}")._replace(
            columns=True
        ),
    },
    "dots1": {
        **experts("mlp"),
        **shared("mlp.shared_experts"),
        "correction": correction("mlp.gate"),
    },
    "latents": _LATENTS,
    "halved_latents": _HALVED_LATENTS,
    "mistral4": {
        **without(_LATENTS, "expert_gate", "expert_up", "correction"),
        "expert_gate_up": layer("mlp.experts.{}.gate_up_proj", "ffn_gate_up_exps.{}"),
    },
    "latents_gguf": {
        **without(_LATENTS, "kv_up"),
        "key_up": layer("self_attn.k_b_proj", "attn_k_b"),
        "value_up": layer("self_attn.v_b_proj", "attn_v_b"),
    },
    "minimax_m2": {
        **experts("block_sparse_moe", of=("w1", "w3", "w2")),
        "correction": correction("block_sparse_moe"),
    },
    "ernie4_5_moe": {
        **experts("mlp"),
        **shared("mlp.shared_experts"),
        "correction": correction("mlp.moe_statics"),
        "q": PAIRED["q"],
        "k": PAIRED["k"],
    },
    "qwen2_moe": QWEN2_MOE,
    **HYBRIDS,
    "gemma": less_one(LLAMA),
    "gemma2": less_one(_GEMMA2),
    "gemma4": _GEMMA4,
    "gemma4_moe": {
        **without(_GEMMA4, "gate", "up", "down"),
        **{f"shared_{part}": LLAMA[part] for part in ("gate", "up", "down")},
        "router": layer("router.proj", "ffn_gate_inp"),
        "router_scale": layer("router.scale", "ffn_gate_inp.scale")._replace(bare=True),
        "expert_scale": layer("router.per_expert_scale", "ffn_down_exps.scale")._replace(bare=True),
        "expert_norm": layer("pre_feedforward_layernorm_2", "pre_ffw_norm_2"),
        "expert_post_norm": layer("post_feedforward_layernorm_2", "post_ffw_norm_2"),
        "shared_post_norm": layer("post_feedforward_layernorm_1", "post_ffw_norm_1"),
        "expert_gate_up": layer("experts.{}.gate_up_proj", "ffn_gate_up_exps.{}"),
        "expert_down": layer("experts.{}.down_proj", "ffn_down_exps.{}"),
    },
    "phi3": {
        **without(_FUSED_MLP, "q", "k", "v"),
        "qkv": layer("self_attn.qkv_proj", "attn_qkv"),
    },
    "olmo2": {
        **without(LLAMA, "attention_norm", "mlp_norm"),
        "attention_post_norm": layer("post_attention_layernorm", "post_attention_norm"),
        "mlp_post_norm": layer("post_feedforward_layernorm", "post_ffw_norm"),
    },
    "glm4": {
        **_FUSED_MLP,
        "q": PAIRED["q"],
        "k": PAIRED["k"],
        "attention_post_norm": layer("post_self_attn_layernorm", "post_attention_norm"),
        "mlp_post_norm": layer("post_mlp_layernorm", "post_ffw_norm"),
    },
    "paired": PAIRED,
    "cohere": without(PAIRED, "mlp_norm"),
    "seed_oss": {**LLAMA, "mlp_norm": layer("post_attention_layernorm", "post_attention_norm")},
    "arcee": without(LLAMA, "gate"),
    "nemotron": less_one(without(LLAMA, "gate")),
    "hunyuan": {
        **LLAMA,
        "q_norm": layer("self_attn.query_layernorm", "attn_q_norm"),
        "k_norm": layer("self_attn.key_layernorm", "attn_k_norm"),
    },
    "phi": {
        **without(LLAMA, "gate", "mlp_norm"),
        "o": layer("self_attn.dense", "attn_output"),
        "up": layer("mlp.fc1", "ffn_up"),
        "down": layer("mlp.fc2", "ffn_down"),
        "final_norm": Name("model.final_layernorm", "output_norm"),
    },
    "gpt_neox": {
        "embedding": Name("gpt_neox.embed_in", "token_embd"),
        "attention_norm": _neox("input_layernorm", "attn_norm"),
        "qkv": _neox("attention.query_key_value", "attn_qkv", "heads"),
        "o": _neox("attention.dense", "attn_output"),
        "mlp_norm": _neox("post_attention_layernorm", "ffn_norm"),
        "up": _neox("mlp.dense_h_to_4h", "ffn_up"),
        "down": _neox("mlp.dense_4h_to_h", "ffn_down"),
        "final_norm": Name("gpt_neox.final_layer_norm", "output_norm"),
        "head": Name("embed_out", "output"),
    },
    "gpt2": _GPT2,
    "gpt2_gguf": {part: name._replace(columns=False) for part, name in _GPT2.items()},
    "apertus": {
        **without(LLAMA, "gate"),
        "attention_norm": layer("attention_layernorm", "attn_norm"),
        "mlp_norm": layer("feedforward_layernorm", "ffn_norm"),
        **{
            part: layer(f"mlp.act_fn.{part}", f"xielu.{part}")._replace(bare=True)
            for part in ("alpha_p", "alpha_n", "beta", "eps")
        },
    },
    "starcoder2": {
        **without(LLAMA, "gate"),
        "up": layer("mlp.c_fc", "ffn_up"),
        "down": layer("mlp.c_proj", "ffn_down"),
    },
}
"""By the names that `ModelSpec` has for them."""
