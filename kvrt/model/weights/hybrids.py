"""What checkpoints call the tensors of families some of whose layers have a recurrence."""

from collections.abc import Mapping

from kvrt.model.weights.naming import (
    LLAMA,
    QWEN2_MOE,
    Name,
    Naming,
    correction,
    experts,
    layer,
    less_one,
    shared,
    without,
)


def _block(name: str, gguf: str) -> Name:
    return Name(f"backbone.layers.{{}}.{name}", f"blk.{{}}.{gguf}")


_LFM2: Naming = {
    **LLAMA,
    "attention_norm": layer("operator_norm", "attn_norm"),
    "q_norm": layer("self_attn.q_layernorm", "attn_q_norm"),
    "k_norm": layer("self_attn.k_layernorm", "attn_k_norm"),
    "o": layer("self_attn.out_proj", "attn_output"),
    "mixer_in": layer("conv.in_proj", "shortconv.in_proj"),
    "conv": layer("conv.conv", "shortconv.conv"),
    "mixer_out": layer("conv.out_proj", "shortconv.out_proj"),
    "mlp_norm": layer("ffn_norm", "ffn_norm"),
    "gate": layer("feed_forward.w1", "ffn_gate"),
    "up": layer("feed_forward.w3", "ffn_up"),
    "down": layer("feed_forward.w2", "ffn_down"),
    "final_norm": Name("model.embedding_norm", "token_embd_norm"),
}
_DELTA: Naming = {
    "conv": layer("linear_attn.conv1d", "ssm_conv1d"),
    "decay_log": layer("linear_attn.A_log", "ssm_a")._replace(bare=True),
    "decay_bias": layer("linear_attn.dt_bias", "ssm_dt")._replace(bare=True),
    "mixer_norm": layer("linear_attn.norm", "ssm_norm"),
    "mixer_out": layer("linear_attn.out_proj", "ssm_out"),
    "q": LLAMA["q"]._replace(order="heads"),
    "mlp_norm": layer("post_attention_layernorm", "post_attention_norm"),
}
_BOTH_GATES: Naming = {
    "mixer_gates": layer("linear_attn.in_proj_ba", "ssm_ba", "heads"),
}
_DELTA_APART: Naming = {
    **_DELTA,
    "delta_qkv": layer("linear_attn.in_proj_qkv", "attn_qkv"),
    "delta_z": layer("linear_attn.in_proj_z", "attn_gate"),
    "delta_b": layer("linear_attn.in_proj_b", "ssm_beta"),
    "delta_a": layer("linear_attn.in_proj_a", "ssm_alpha"),
}
_KIMI: Naming = {
    **without(experts("block_sparse_moe", of=("w1", "w3", "w2")), "k", "v", "q_norm", "k_norm"),
    **shared("block_sparse_moe.shared_experts"),
    **{
        part: LLAMA[part]._replace(also=LLAMA[part].file.replace("mlp", "block_sparse_moe"))
        for part in ("gate", "up", "down")
    },
    "correction": correction("block_sparse_moe.gate"),
    "kv_down": layer("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
    "latent_norm": layer("self_attn.kv_a_layernorm", "attn_kv_a_norm"),
    "kv_up": layer("self_attn.kv_b_proj", "attn_kv_b", "absorbed"),
    **{f"delta_{part}": layer(f"self_attn.{part}_proj", f"attn_{part}") for part in "qkv"},
    **{f"conv_{part}": layer(f"self_attn.{part}_conv1d", f"ssm_conv1d_{part}") for part in "qkv"},
    "decay_log": layer("self_attn.A_log", "ssm_a")._replace(bare=True),
    "decay_bias": layer("self_attn.dt_bias", "ssm_dt")._replace(bare=True),
    "delta_b": layer("self_attn.b_proj", "ssm_beta"),
    "delta_a_down": layer("self_attn.f_a_proj", "ssm_f_a"),
    "delta_a_up": layer("self_attn.f_b_proj", "ssm_f_b"),
    "delta_z_down": layer("self_attn.g_a_proj", "ssm_g_a"),
    "delta_z_up": layer("self_attn.g_b_proj", "ssm_g_b"),
    "mixer_norm": layer("self_attn.o_norm", "ssm_norm"),
    "mixer_out": layer("self_attn.o_proj", "attn_output"),
}
_OLMO: Naming = {
    **without(LLAMA, "attention_norm", "mlp_norm"),
    "attention_post_norm": layer(
        "post_attention_layernorm", "post_attention_norm", also="feedforward_layer_norm"
    ),
    "mlp_post_norm": layer("post_feedforward_layernorm", "post_ffw_norm"),
}
_OLMO_RECURRENT: Naming = {
    **LLAMA,
    "attention_norm": layer("attention_layer_norm", "attn_norm", also="input_layernorm"),
    "mlp_norm": layer("feedforward_layer_norm", "ffn_norm", also="post_attention_layernorm"),
    **{f"delta_{part}": layer(f"linear_attn.{part}_proj", f"attn_{part}") for part in "qkvab"},
    "delta_z": layer("linear_attn.g_proj", "attn_gate"),
    **{f"conv_{part}": layer(f"linear_attn.{part}_conv1d", f"ssm_conv1d_{part}") for part in "qkv"},
    "decay_log": _DELTA["decay_log"],
    "decay_bias": _DELTA["decay_bias"],
    "mixer_norm": layer("linear_attn.o_norm", "ssm_norm"),
    "mixer_out": layer("linear_attn.o_proj", "ssm_out"),
}
_SPACE: Naming = {
    "mixer_in": layer("mamba.in_proj", "ssm_in"),
    "conv": layer("mamba.conv1d", "ssm_conv1d"),
    "decay_log": layer("mamba.A_log", "ssm_a")._replace(bare=True),
    "decay_bias": layer("mamba.dt_bias", "ssm_dt")._replace(bare=True),
    "skip": layer("mamba.D", "ssm_d")._replace(bare=True),
    "mixer_norm": layer("mamba.norm", "ssm_norm"),
    "mixer_out": layer("mamba.out_proj", "ssm_out"),
}
_GRANITE_ROUTER = layer("block_sparse_moe.router.layer", "ffn_gate_inp")
_FED: Naming = {
    "mlp_norm": layer("pre_ff_layernorm", "ffn_norm"),
    "gate": layer("feed_forward.gate_proj", "ffn_gate"),
    "up": layer("feed_forward.up_proj", "ffn_up"),
    "down": layer("feed_forward.down_proj", "ffn_down"),
    "final_norm": Name("model.final_layernorm", "output_norm"),
}

HYBRIDS: Mapping[str, Naming] = {
    "lfm2": _LFM2,
    "lfm2_moe": {
        **experts("feed_forward", of=("w1", "w3", "w2")),
        **_LFM2,
        "correction": layer("feed_forward.expert_bias", "exp_probs_b")._replace(bare=True),
    },
    "qwen3_5": less_one({**LLAMA, **_DELTA_APART}),
    "qwen3_5_moe": less_one({**QWEN2_MOE, **_DELTA_APART}),
    "qwen3_next_gguf": less_one(
        {**QWEN2_MOE, **without(_DELTA_APART, "delta_b", "delta_a"), **_BOTH_GATES}
    ),
    "qwen3_next": less_one(
        {
            **QWEN2_MOE,
            **_DELTA,
            **_BOTH_GATES,
            "mixer_in": layer("linear_attn.in_proj_qkvz", "ssm_in", "heads"),
        }
    ),
    "kimi_linear": _KIMI,
    "olmo_hybrid": _OLMO,
    "olmo_hybrid, recurrent": _OLMO_RECURRENT,
    "granite_hybrid_gguf": {
        **experts("mlp"),
        **shared("mlp.shared_experts"),
        **_SPACE,
        "router": _GRANITE_ROUTER,
    },
    "granite_hybrid": {
        **without(LLAMA, "gate", "up", "down"),
        **_SPACE,
        "router": _GRANITE_ROUTER,
        "expert_gate_up": layer("block_sparse_moe.input_linear.{}", "ffn_gate_up_exps.{}"),
        "expert_down": layer("block_sparse_moe.output_linear.{}", "ffn_down_exps.{}"),
        "gate_up": layer("shared_mlp.input_linear", "ffn_up"),
        "down": layer("shared_mlp.output_linear", "ffn_down"),
        "shared_down": layer("shared_mlp.output_linear", "ffn_down_shexp"),
    },
    "nemotron_h": {
        "embedding": Name("backbone.embeddings", "token_embd"),
        "attention_norm": _block("norm", "attn_norm"),
        "q": _block("mixer.q_proj", "attn_q"),
        "k": _block("mixer.k_proj", "attn_k"),
        "v": _block("mixer.v_proj", "attn_v"),
        "o": _block("mixer.o_proj", "attn_output"),
        **{
            part: name._replace(
                file=name.file.replace("model", "backbone").replace("mamba", "mixer")
            )
            for part, name in _SPACE.items()
        },
        "router": _block("mixer.gate", "ffn_gate_inp"),
        "correction": _block("mixer.gate.e_score_correction_bias", "exp_probs_b")._replace(
            bare=True
        ),
        "expert_up": _block("mixer.experts.{}.up_proj", "ffn_up_exps.{}"),
        "expert_down": _block("mixer.experts.{}.down_proj", "ffn_down_exps.{}"),
        "shared_up": _block("mixer.shared_experts.up_proj", "ffn_up_shexp"),
        "shared_down": _block("mixer.shared_experts.down_proj", "ffn_down_shexp"),
        "mlp_norm": _block("norm", "attn_norm"),
        "up": _block("mixer.up_proj", "ffn_up"),
        "down": _block("mixer.down_proj", "ffn_down"),
        "final_norm": Name("backbone.norm_f", "output_norm"),
        "head": LLAMA["head"],
    },
    "falcon_h1": {**LLAMA, **_SPACE, **_FED},
}
"""Rows of `names.NAMINGS`."""
