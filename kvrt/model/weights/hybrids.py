"""What checkpoints call the tensors of families some of whose layers have a recurrence."""

from collections.abc import Mapping

from kvrt.model.weights.naming import (
    LLAMA,
    QWEN2_MOE,
    Name,
    Naming,
    experts,
    layer,
    less_one,
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
}
_DELTA_APART: Naming = {
    **_DELTA,
    "delta_qkv": layer("linear_attn.in_proj_qkv", "attn_qkv"),
    "delta_z": layer("linear_attn.in_proj_z", "attn_gate"),
    "delta_b": layer("linear_attn.in_proj_b", "ssm_beta"),
    "delta_a": layer("linear_attn.in_proj_a", "ssm_alpha"),
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
    "qwen3_next": less_one(
        {
            **QWEN2_MOE,
            **_DELTA,
            "mixer_in": layer("linear_attn.in_proj_qkvz", "ssm_in", "heads"),
            "mixer_gates": layer("linear_attn.in_proj_ba", "ssm_ba", "heads"),
        }
    ),
    "granite_hybrid": {
        **without(LLAMA, "gate", "up", "down"),
        **_SPACE,
        "router": layer("block_sparse_moe.router.layer", "ffn_gate_inp"),
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
        "mlp_norm": _block("norm", "attn_norm"),
        "up": _block("mixer.up_proj", "ffn_up"),
        "down": _block("mixer.down_proj", "ffn_down"),
        "final_norm": Name("backbone.norm_f", "output_norm"),
        "head": LLAMA["head"],
    },
    "falcon_h1": {**LLAMA, **_SPACE, **_FED},
}
"""Rows of `names.NAMINGS`."""
