"""What checkpoints call the tensors of a decoder, and how their rows lie there.

A row of a naming is one tensor of the decoder: its name in safetensors, its name in GGUF files, and
what is to be done with its rows as they come from safetensors. A norm or bias that a naming does
not have is one that the model does not have; rows that it has together under one name (``qkv`` in
place of ``q``, ``k`` and ``v``) are one tensor in its files.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

RowOrder = Literal["", "pairs", "less_one", "turns", "heads", "absorbed"]
"""``pairs``: each head's rows are in pairs, (i, i + rotated/2) beside each other; ``less_one``: of
norm weights, 1 is taken off; ``turns``: those of gate and of up take turns; ``heads``: those of a
head are together, of all its parts in turn (`rows.rows_of`); ``absorbed``: of each head in turn,
those that make its key of a latent, which are turned, and those that make its value."""


class Name(NamedTuple):
    """A tensor's names, without ``.weight`` or ``.bias``; ``{}`` stands for the layer's number.

    A second one stands for the number of an expert. Files may have those of all experts in one
    tensor, whose name is that without the number.

    Args:
        file: in safetensors files.
        gguf: in GGUF files.
        order: how its rows lie in safetensors files.
        columns: in safetensors files, what are rows of a matrix are its columns.
        bare: in safetensors files, nothing is added to the name.
    """

    file: str
    gguf: str
    order: RowOrder = ""
    columns: bool = False
    bare: bool = False


Naming = Mapping[str, Name]
"""By the tensor's part in the decoder; see `weights.weights_of`."""


def _layer(name: str, gguf: str, order: RowOrder = "") -> Name:
    return Name(f"model.layers.{{}}.{name}", f"blk.{{}}.{gguf}", order)


def _neox(name: str, gguf: str, order: RowOrder = "") -> Name:
    return Name(f"gpt_neox.layers.{{}}.{name}", f"blk.{{}}.{gguf}", order)


def _gpt2(name: str, gguf: str, columns: bool = True) -> Name:
    return Name(f"transformer.h.{{}}.{name}", f"blk.{{}}.{gguf}", columns=columns)


def _without(naming: Naming, *parts: str) -> Naming:
    return {part: name for part, name in naming.items() if part not in parts}


def _less_one(naming: Naming) -> Naming:
    return {
        part: name._replace(order="less_one")
        if part.endswith("norm") and part != "mixer_norm"
        else name
        for part, name in naming.items()
    }


PROJECTIONS = "gate_proj", "up_proj", "down_proj"

LLAMA: Naming = {
    "embedding": Name("model.embed_tokens", "token_embd"),
    "attention_norm": _layer("input_layernorm", "attn_norm"),
    "q": _layer("self_attn.q_proj", "attn_q"),
    "k": _layer("self_attn.k_proj", "attn_k"),
    "v": _layer("self_attn.v_proj", "attn_v"),
    "q_norm": _layer("self_attn.q_norm", "attn_q_norm"),
    "k_norm": _layer("self_attn.k_norm", "attn_k_norm"),
    "o": _layer("self_attn.o_proj", "attn_output"),
    "mlp_norm": _layer("post_attention_layernorm", "ffn_norm"),
    "gate": _layer("mlp.gate_proj", "ffn_gate"),
    "up": _layer("mlp.up_proj", "ffn_up"),
    "down": _layer("mlp.down_proj", "ffn_down"),
    "final_norm": Name("model.norm", "output_norm"),
    "head": Name("lm_head", "output"),
}

_PAIRED: Naming = {
    **LLAMA,
    "q": LLAMA["q"]._replace(order="pairs"),
    "k": LLAMA["k"]._replace(order="pairs"),
}
_FUSED_MLP: Naming = {
    **_without(LLAMA, "gate", "up"),
    "gate_up": _layer("mlp.gate_up_proj", "ffn_up"),
}


def _experts(block: str, *, router: str = "gate", of: tuple[str, str, str] = PROJECTIONS) -> Naming:
    """A mixture of experts beside Llama's other tensors.

    Args:
        block: what holds it.
        router: its name there.
        of: the names of an expert's gate, up and down.
    """
    gate, up, down = (f"{block}.experts.{{}}.{name}" for name in of)
    return {
        **LLAMA,
        "router": _layer(f"{block}.{router}", "ffn_gate_inp"),
        "expert_gate": _layer(gate, "ffn_gate_exps.{}"),
        "expert_up": _layer(up, "ffn_up_exps.{}"),
        "expert_down": _layer(down, "ffn_down_exps.{}"),
    }


def _correction(block: str) -> Name:
    """What is added to the experts' scores for their choice."""
    name = _layer(f"{block}.e_score_correction_bias", "exp_probs_b")
    return name._replace(bare=True)


def _shared(block: str) -> Naming:
    """What all tokens have besides."""
    gate, up, down = PROJECTIONS
    return {
        "shared_gate": _layer(f"{block}.{gate}", "ffn_gate_shexp"),
        "shared_up": _layer(f"{block}.{up}", "ffn_up_shexp"),
        "shared_down": _layer(f"{block}.{down}", "ffn_down_shexp"),
    }


_GPT_OSS: Naming = {
    **_experts("mlp", router="router"),
    "sinks": Name("model.layers.{}.self_attn.sinks", "blk.{}.attn_sinks", bare=True),
    "mlp_norm": _layer("post_attention_layernorm", "post_attention_norm"),
}
_GRANITE_MOE: Naming = {
    **_experts("mlp"),
    "router": _layer("block_sparse_moe.router.layer", "ffn_gate_inp"),
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
_LFM2: Naming = {
    **LLAMA,
    "attention_norm": _layer("operator_norm", "attn_norm"),
    "q_norm": _layer("self_attn.q_layernorm", "attn_q_norm"),
    "k_norm": _layer("self_attn.k_layernorm", "attn_k_norm"),
    "o": _layer("self_attn.out_proj", "attn_output"),
    "mixer_in": _layer("conv.in_proj", "shortconv.in_proj"),
    "conv": _layer("conv.conv", "shortconv.conv"),
    "mixer_out": _layer("conv.out_proj", "shortconv.out_proj"),
    "mlp_norm": _layer("ffn_norm", "ffn_norm"),
    "gate": _layer("feed_forward.w1", "ffn_gate"),
    "up": _layer("feed_forward.w3", "ffn_up"),
    "down": _layer("feed_forward.w2", "ffn_down"),
    "final_norm": Name("model.embedding_norm", "token_embd_norm"),
}
_HALVED_LATENTS: Naming = {
    **_without(_experts("mlp"), "k", "v", "q_norm", "k_norm"),
    **_shared("mlp.shared_experts"),
    "correction": _correction("mlp.gate"),
    "q_down": _layer("self_attn.q_a_proj", "attn_q_a"),
    "query_norm": _layer("self_attn.q_a_layernorm", "attn_q_a_norm"),
    "q_up": _layer("self_attn.q_b_proj", "attn_q_b"),
    "kv_down": _layer("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
    "latent_norm": _layer("self_attn.kv_a_layernorm", "attn_kv_a_norm"),
    "kv_up": _layer("self_attn.kv_b_proj", "attn_kv_b", "absorbed"),
}
_LATENTS: Naming = {
    part: name._replace(order="pairs") if part in ("q", "q_up", "kv_down") else name
    for part, name in _HALVED_LATENTS.items()
}

_DELTA: Naming = {
    "conv": _layer("linear_attn.conv1d", "ssm_conv1d"),
    "decay_log": _layer("linear_attn.A_log", "ssm_a")._replace(bare=True),
    "decay_bias": _layer("linear_attn.dt_bias", "ssm_dt")._replace(bare=True),
    "mixer_norm": _layer("linear_attn.norm", "ssm_norm"),
    "mixer_out": _layer("linear_attn.out_proj", "ssm_out"),
    "q": LLAMA["q"]._replace(order="heads"),
}
_DELTA_APART: Naming = {
    **_DELTA,
    "delta_qkv": _layer("linear_attn.in_proj_qkv", "attn_qkv"),
    "delta_z": _layer("linear_attn.in_proj_z", "attn_gate"),
    "delta_b": _layer("linear_attn.in_proj_b", "ssm_beta"),
    "delta_a": _layer("linear_attn.in_proj_a", "ssm_alpha"),
}
_QWEN2_MOE: Naming = {
    **_experts("mlp"),
    **_shared("mlp.shared_expert"),
    "shared_scale": _layer("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
}

_GEMMA2: Naming = {
    **LLAMA,
    "attention_post_norm": _layer("post_attention_layernorm", "post_attention_norm"),
    "mlp_norm": _layer("pre_feedforward_layernorm", "ffn_norm"),
    "mlp_post_norm": _layer("post_feedforward_layernorm", "post_ffw_norm"),
}
_GEMMA4: Naming = {
    **_GEMMA2,
    "layer_scale": _layer("layer_scalar", "layer_output_scale")._replace(bare=True),
}

NAMINGS: Mapping[str, Naming] = {
    "llama": LLAMA,
    "lfm2": _LFM2,
    "lfm2_moe": {
        **_experts("feed_forward", of=("w1", "w3", "w2")),
        **_LFM2,
        "correction": _layer("feed_forward.expert_bias", "exp_probs_b")._replace(bare=True),
    },
    "mixtral": _experts("block_sparse_moe", of=("w1", "w3", "w2")),
    "moe": _experts("mlp"),
    "granite_moe": {
        **_without(_GRANITE_MOE, "expert_gate", "expert_up"),
        "expert_gate_up": _layer("block_sparse_moe.input_linear.{}", "ffn_gate_up_exps.{}"),
        "expert_down": _layer("block_sparse_moe.output_linear.{}", "ffn_down_exps.{}"),
    },
    "granite_moe_gguf": _GRANITE_MOE,
    "gpt_oss": {
        **_without(_GPT_OSS, "expert_gate", "expert_up"),
        "expert_gate_up": _layer("mlp.experts.{}.gate_up_proj", "ffn_gate_up_exps.{}")._replace(
            order="turns", columns=True
        ),
        "expert_down": _GPT_OSS["expert_down"]._replace(columns=True),
    },
    "gpt_oss_gguf": _GPT_OSS,
    "glm4_moe": {
        **_experts("mlp"),
        **_shared("mlp.shared_experts"),
        "correction": _correction("mlp.gate"),
        "mlp_norm": _layer("post_attention_layernorm", "post_attention_norm"),
    },
    "llama4": {
        **_without(_experts("feed_forward", router="router"), "expert_gate", "expert_up"),
        **_shared("feed_forward.shared_expert"),
        "q": _PAIRED["q"],
        "k": _PAIRED["k"],
        "gate": _layer("feed_forward.gate_proj", "ffn_gate"),
        "up": _layer("feed_forward.up_proj", "ffn_up"),
        "down": _layer("feed_forward.down_proj", "ffn_down"),
        "expert_gate_up": _layer(
            "feed_forward.experts.{}.gate_up_proj", "ffn_gate_up_exps.{}"
        )._replace(columns=True),
        "expert_down": _layer("feed_forward.experts.{}.down_proj", "ffn_down_exps.{}")._replace(
            columns=True
        ),
    },
    "dots1": {
        **_experts("mlp"),
        **_shared("mlp.shared_experts"),
        "correction": _correction("mlp.gate"),
    },
    "latents": _LATENTS,
    "halved_latents": _HALVED_LATENTS,
    "mistral4": {
        **_without(_LATENTS, "expert_gate", "expert_up", "correction"),
        "expert_gate_up": _layer("mlp.experts.{}.gate_up_proj", "ffn_gate_up_exps.{}"),
    },
    "latents_gguf": {
        **_without(_LATENTS, "kv_up"),
        "key_up": _layer("self_attn.k_b_proj", "attn_k_b"),
        "value_up": _layer("self_attn.v_b_proj", "attn_v_b"),
    },
    "minimax_m2": {
        **_experts("block_sparse_moe", of=("w1", "w3", "w2")),
        "correction": _correction("block_sparse_moe"),
    },
    "ernie4_5_moe": {
        **_experts("mlp"),
        **_shared("mlp.shared_experts"),
        "correction": _correction("mlp.moe_statics"),
        "q": _PAIRED["q"],
        "k": _PAIRED["k"],
    },
    "qwen2_moe": _QWEN2_MOE,
    "qwen3_5": _less_one({**LLAMA, **_DELTA_APART}),
    "qwen3_5_moe": _less_one({**_QWEN2_MOE, **_DELTA_APART}),
    "qwen3_next": _less_one(
        {
            **_QWEN2_MOE,
            **_DELTA,
            "mixer_in": _layer("linear_attn.in_proj_qkvz", "ssm_in", "heads"),
            "mixer_gates": _layer("linear_attn.in_proj_ba", "ssm_ba", "heads"),
        }
    ),
    "gemma": _less_one(LLAMA),
    "gemma2": _less_one(_GEMMA2),
    "gemma4": _GEMMA4,
    "gemma4_moe": {
        **_without(_GEMMA4, "gate", "up", "down"),
        **{f"shared_{part}": LLAMA[part] for part in ("gate", "up", "down")},
        "router": _layer("router.proj", "ffn_gate_inp"),
        "router_scale": _layer("router.scale", "ffn_gate_inp.scale")._replace(bare=True),
        "expert_scale": _layer("router.per_expert_scale", "ffn_down_exps.scale")._replace(
            bare=True
        ),
        "expert_norm": _layer("pre_feedforward_layernorm_2", "pre_ffw_norm_2"),
        "expert_post_norm": _layer("post_feedforward_layernorm_2", "post_ffw_norm_2"),
        "shared_post_norm": _layer("post_feedforward_layernorm_1", "post_ffw_norm_1"),
        "expert_gate_up": _layer("experts.{}.gate_up_proj", "ffn_gate_up_exps.{}"),
        "expert_down": _layer("experts.{}.down_proj", "ffn_down_exps.{}"),
    },
    "phi3": {
        **_without(_FUSED_MLP, "q", "k", "v"),
        "qkv": _layer("self_attn.qkv_proj", "attn_qkv"),
    },
    "olmo2": {
        **_without(LLAMA, "attention_norm", "mlp_norm"),
        "attention_post_norm": _layer("post_attention_layernorm", "post_attention_norm"),
        "mlp_post_norm": _layer("post_feedforward_layernorm", "post_ffw_norm"),
    },
    "glm4": {
        **_FUSED_MLP,
        "q": _PAIRED["q"],
        "k": _PAIRED["k"],
        "attention_post_norm": _layer("post_self_attn_layernorm", "post_attention_norm"),
        "mlp_post_norm": _layer("post_mlp_layernorm", "post_ffw_norm"),
    },
    "paired": _PAIRED,
    "cohere": _without(_PAIRED, "mlp_norm"),
    "seed_oss": {**LLAMA, "mlp_norm": _layer("post_attention_layernorm", "post_attention_norm")},
    "arcee": _without(LLAMA, "gate"),
    "nemotron": _less_one(_without(LLAMA, "gate")),
    "hunyuan": {
        **LLAMA,
        "q_norm": _layer("self_attn.query_layernorm", "attn_q_norm"),
        "k_norm": _layer("self_attn.key_layernorm", "attn_k_norm"),
    },
    "phi": {
        **_without(LLAMA, "gate", "mlp_norm"),
        "o": _layer("self_attn.dense", "attn_output"),
        "up": _layer("mlp.fc1", "ffn_up"),
        "down": _layer("mlp.fc2", "ffn_down"),
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
        **_without(LLAMA, "gate"),
        "attention_norm": _layer("attention_layernorm", "attn_norm"),
        "mlp_norm": _layer("feedforward_layernorm", "ffn_norm"),
        **{
            part: _layer(f"mlp.act_fn.{part}", f"xielu.{part}")._replace(bare=True)
            for part in ("alpha_p", "alpha_n", "beta", "eps")
        },
    },
    "starcoder2": {
        **_without(LLAMA, "gate"),
        "up": _layer("mlp.c_fc", "ffn_up"),
        "down": _layer("mlp.c_proj", "ffn_down"),
    },
}
"""By the names that `ModelSpec` has for them."""
