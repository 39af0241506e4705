"""Writes tiny models with recurrent layers as GGUF files, as llama.cpp's converters do."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.model.ggufs import config_of, keys_of, pack, write_gguf

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "linear_attn.in_proj_qkv": "attn_qkv",
    "linear_attn.in_proj_z": "attn_gate",
    "linear_attn.in_proj_b": "ssm_beta",
    "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.in_proj_ba": "ssm_ba",
    "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.norm": "ssm_norm",
    "linear_attn.out_proj": "ssm_out",
    "mamba.in_proj": "ssm_in",
    "mamba.conv1d": "ssm_conv1d",
    "mamba.norm": "ssm_norm",
    "mamba.out_proj": "ssm_out",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "block_sparse_moe.router.layer": "ffn_gate_inp",
    "block_sparse_moe.output_linear": "ffn_down_exps",
}


def save_hybrid(folder: Path, path: Path) -> Path:
    """The checkpoint in a folder as a GGUF file."""
    config = config_of(folder)
    stored = {name: t.float() for name, t in load_file(folder / "model.safetensors").items()}
    tensors = dict(_experts(stored))
    for name, tensor in stored.items():
        if ".experts." not in name:
            tensors |= _converted(config, name, tensor)
    packed = {name: pack(tensor.contiguous(), "F32") for name, tensor in tensors.items()}
    return write_gguf(path, keys_of(folder) | _keys(config), packed)


def _keys(config: Mapping[str, Any]) -> dict[str, Any]:
    kinds = config["layer_types"]
    if config["model_type"] == "granitemoehybrid":
        inner = config["mamba_expand"] * config["hidden_size"]
        keys = {
            "ssm.conv_kernel": config["mamba_d_conv"],
            "ssm.state_size": config["mamba_d_state"],
            "ssm.group_count": config["mamba_n_groups"],
            "ssm.inner_size": inner,
            "ssm.time_step_rank": config["mamba_n_heads"],
            "rope.scaling.finetuned": False,
            "attention.head_count_kv": [
                config["num_key_value_heads"] * (kind == "full_attention") for kind in kinds
            ],
        }
        shared = config["shared_intermediate_size"]
        if config["num_local_experts"]:
            keys["expert_shared_feed_forward_length"] = shared
        else:
            keys |= {"feed_forward_length": shared, "expert_used_count": 0}
        return {f"granitehybrid.{key}": value for key, value in keys.items()}
    arch = {"qwen3_next": "qwen3next", "qwen3_5_text": "qwen35"}.get(
        config["model_type"], "qwen35moe"
    )
    heads = config["linear_num_value_heads"]
    keys = {
        "ssm.conv_kernel": config["linear_conv_kernel_dim"],
        "ssm.state_size": config["linear_key_head_dim"],
        "ssm.group_count": config["linear_num_key_heads"],
        "ssm.time_step_rank": heads,
        "ssm.inner_size": heads * config["linear_value_head_dim"],
        "full_attention_interval": kinds.index("full_attention") + 1,
        "rope.dimension_count": config["head_dim"] // 4,
        "rope.dimension_sections": [2, 1, 1, 0],
        "feed_forward_length": config.get("intermediate_size") or 96,
    }
    if "shared_expert_intermediate_size" in config:
        keys["expert_shared_feed_forward_length"] = config["shared_expert_intermediate_size"]
    return {f"{arch}.{key}": value for key, value in keys.items()}


def _converted(
    config: Mapping[str, Any], name: str, tensor: torch.Tensor
) -> dict[str, torch.Tensor]:
    """A tensor under the names, and in the form, that converters give it."""
    if not name.startswith("model.layers."):
        stem, _, end = name.rpartition(".")
        is_norm = stem == "model.norm" and config["model_type"].startswith("qwen3")
        return {f"{NAMES[stem]}.{end}": tensor + 1 if is_norm else tensor}
    number, _, part = name.removeprefix("model.layers.").partition(".")
    block, (stem, _, end) = f"blk.{number}", part.rpartition(".")
    space = stem.startswith("mamba")
    tensor = _tiled(config, stem or part, end, tensor)
    if end == "A_log":
        return {f"{block}.ssm_a": -tensor.exp().view(-1, *(1,) * space)}
    if end == "D":
        return {f"{block}.ssm_d": tensor.view(-1, 1)}
    if end == "dt_bias":
        return {f"{block}.ssm_dt.bias": tensor}
    if stem == "post_attention_layernorm":
        qwen = config["model_type"].startswith("qwen3")
        stem = "post_attention_norm" if qwen else "ffn_norm"
        return {f"{block}.{stem}.{end}": tensor + qwen}
    if stem == "linear_attn.in_proj_qkvz":
        return _apart(config, block, tensor)
    if stem.endswith("_linear"):
        return _halves(config, block, stem, tensor)
    if stem.endswith("conv1d") and end == "weight":
        tensor = tensor.squeeze(1)
    if stem == "mamba.norm":
        tensor = tensor.view(config["mamba_n_groups"], -1)
    if stem.endswith("norm") and stem != "linear_attn.norm" and not space:
        tensor = tensor + config["model_type"].startswith("qwen3")
    if stem == "mlp.shared_expert_gate":
        tensor = tensor.squeeze(0)
    return {f"{block}.{PARTS[stem]}.{end}": tensor}


def _tiled(config: Mapping[str, Any], stem: str, end: str, tensor: torch.Tensor) -> torch.Tensor:
    """What has a part of each value head, with the heads in turns, as in Qwen3.5's files."""
    if not config["model_type"].startswith("qwen3_5") or "linear_attn" not in stem:
        return tensor
    keys, width = config["linear_num_key_heads"], config["linear_value_head_dim"]

    def turns(rows: torch.Tensor) -> torch.Tensor:
        each = config["linear_num_value_heads"] // keys
        return rows.view(keys, each, -1, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)

    if end in ("A_log", "dt_bias") or stem.endswith(("in_proj_b", "in_proj_a", "in_proj_z")):
        return turns(tensor)
    if stem.endswith(("in_proj_qkv", "conv1d")):
        values = config["linear_num_value_heads"] * width
        return torch.cat((tensor[:-values], turns(tensor[-values:])))
    return turns(tensor.t().contiguous()).t() if stem.endswith("out_proj") else tensor


def _apart(config: Mapping[str, Any], block: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Queries, keys, values and gates, which lie together by heads of keys."""
    keys, width = config["linear_num_key_heads"], config["linear_key_head_dim"]
    values = config["linear_num_value_heads"] // keys * config["linear_value_head_dim"]
    parts = tensor.view(keys, -1, tensor.shape[1]).split((width, width, values, values), 1)
    q, k, v, z = (part.flatten(0, 1) for part in parts)
    return {
        f"{block}.attn_qkv.weight": torch.cat((q, k, v)),
        f"{block}.attn_gate.weight": z,
    }


def _halves(
    config: Mapping[str, Any], block: str, stem: str, tensor: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Granite's feed-forward layers, with gate and up apart."""
    of_experts = stem.startswith("block_sparse_moe")
    shared = "_exps" if of_experts else "_shexp" if config["num_local_experts"] else ""
    if stem.endswith("output_linear"):
        return {f"{block}.ffn_down{shared}.weight": tensor}
    gate, up = tensor.chunk(2, -2)
    return {f"{block}.ffn_gate{shared}.weight": gate, f"{block}.ffn_up{shared}.weight": up}


def _experts(stored: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Those of a layer in one tensor each."""
    names = {"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"}
    found: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in stored.items():
        if ".experts." in name:
            layer, expert, part = (name.split(".")[at] for at in (2, 5, 6))
            found.setdefault(f"blk.{layer}.{names[part]}.weight", {})[int(expert)] = tensor
    for name, each in found.items():
        yield name, torch.stack([each[at] for at in sorted(each)])
