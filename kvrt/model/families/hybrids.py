"""The families some of whose layers have a recurrence, as rows: see `kvrt.model.families`."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from kvrt.model.families.family import ATTENTION_BIAS, MAX_WIDTH, Family
from kvrt.model.families.latents import read_latent
from kvrt.model.families.mixtures import Mixture, counts, deepseek_experts, qwen2_experts
from kvrt.model.families.rotary import section_of
from kvrt.model.families.windows import MAX_LAYERS
from kvrt.model.files.jsonfile import Fields, shown
from kvrt.model.spec import ExpertSpec, LayerSpec
from kvrt.model.states import GatedDelta, ShortConvolution
from kvrt.spi import Router

MAX_KERNEL = 1 << 8
MAX_HEADS = 1 << 12
MAX_DIM = 1 << 11


def _typed(fields: Fields, count: int, recurrent: str) -> list[bool] | None:
    """Which layers have a recurrence, of that name, by ``layer_types``; None if it is missing."""
    if not fields.has("layer_types"):
        return None
    kinds = fields.items("layer_types", str)
    if len(kinds) != count:
        raise fields.error("layer_types", f"has {len(kinds)} entries for {count} layers")
    for kind in kinds:
        if kind not in ("full_attention", recurrent):
            rule = f"names {shown(kind)}; supported are full_attention and {recurrent}"
            raise fields.error("layer_types", rule)
    if "full_attention" not in kinds:
        raise fields.error("layer_types", "has no full_attention, which is not supported")
    return [kind == recurrent for kind in kinds]


def _lfm_layers(fields: Fields, count: int) -> list[LayerSpec]:
    recurrent = _typed(fields, count, "conv")
    if recurrent is None:
        attending: list[int] = [*range(count)]
        if fields.has("full_attn_idxs"):
            attending = fields.items("full_attn_idxs", int)
        recurrent = [layer not in attending for layer in range(count)]
        if all(recurrent):
            raise fields.error("full_attn_idxs", "names no layer, which is not supported")
    return [LayerSpec(recurrent=one) for one in recurrent]


def _delta_layers(fields: Fields, count: int) -> list[LayerSpec]:
    recurrent = _typed(fields, count, "linear_attention")
    if recurrent is None:
        every = fields.integer("full_attention_interval", 1, MAX_LAYERS, 4)
        recurrent = [(layer + 1) % every != 0 for layer in range(count)]
        if all(recurrent):
            raise fields.error("full_attention_interval", f"is {every}, for {count} layers")
    return [LayerSpec(recurrent=one) for one in recurrent]


def _delta_recurrence(fields: Fields) -> dict[str, Any]:
    return {"recurrence": _gated_delta(fields)}


def _gated_delta(
    fields: Fields,
    key_heads: int = 16,
    value_heads: int = 32,
    key_dim: int = 128,
    value_dim: int = 128,
) -> GatedDelta:
    """The shape, where no field says otherwise."""
    key_heads = fields.integer("linear_num_key_heads", 1, MAX_HEADS, key_heads)
    value_heads = fields.integer("linear_num_value_heads", 1, MAX_HEADS, value_heads)
    if value_heads % key_heads:
        rule = f"is {value_heads}, no multiple of {key_heads} key heads"
        raise fields.error("linear_num_value_heads", rule)
    key_dim = fields.integer("linear_key_head_dim", 1, MAX_DIM, key_dim)
    value_dim = fields.integer("linear_value_head_dim", 1, MAX_DIM, value_dim)
    kernel = fields.integer("linear_conv_kernel_dim", 2, MAX_KERNEL, 4)
    return GatedDelta(key_heads, value_heads, key_dim, value_dim, kernel)


def _expert_width(fields: Fields) -> int:
    """That of experts, where all layers have them."""
    return fields.integer("moe_intermediate_size", 1, MAX_WIDTH)


def _lfm_recurrence(fields: Fields) -> dict[str, Any]:
    kernel = fields.integer("conv_L_cache", 2, MAX_KERNEL, 3)
    channels = fields.integer("hidden_size", 1, MAX_WIDTH)
    return {"recurrence": ShortConvolution(channels, kernel, fields.flag("conv_bias", False))}


def _lfm_width(fields: Fields) -> int:
    """The width is two thirds of what is said, scaled and rounded up, where a field says so."""
    width = fields.integer("intermediate_size", 1, MAX_WIDTH)
    if not fields.flag("block_auto_adjust_ff_dim", True):
        return width
    width = 2 * width // 3
    if fields.has("block_ffn_dim_multiplier"):
        width = int(fields.number("block_ffn_dim_multiplier", 0.0, 1e3) * width)
        multiple = fields.integer("block_multiple_of", 1, MAX_WIDTH)
        width = multiple * -(-width // multiple)
    if not 1 <= width <= MAX_WIDTH:
        raise fields.error("block_ffn_dim_multiplier", f"makes the width {width}")
    return width


def _lfm_experts(fields: Fields, layers: int) -> Mixture:
    count, chosen = counts(fields, 32, "num_experts", "num_local_experts")
    router = Router(
        "sigmoid",
        chosen,
        fields.flag("norm_topk_prob", True),
        fields.number("routed_scaling_factor", 0.0, 1e6, 1.0),
    )  # which divides by the sum itself; they add 1e-6 to it
    experts = ExpertSpec(
        count,
        fields.integer("moe_intermediate_size", 1, MAX_WIDTH, 1792),
        router,
        correction=fields.flag("use_expert_bias", True),
    )
    first = fields.integer("num_dense_layers", 0, MAX_LAYERS, 2)
    return experts, [layer >= first for layer in range(layers)]


def _olmo_layers(fields: Fields, count: int) -> list[LayerSpec]:
    """Where it is said that rotation has no base, there is none."""
    section = section_of(fields)
    said = section is not None and "rope_theta" in section
    rope = 0 if section is None or not said or section.has("rope_theta") else None
    return [replace(layer, rope=rope) for layer in _delta_layers(fields, count)]


def _olmo_recurrence(fields: Fields) -> dict[str, Any]:
    heads = fields.integer("num_attention_heads", 1, MAX_HEADS)
    hidden = fields.integer("hidden_size", 1, MAX_WIDTH)
    key_heads = fields.integer("linear_num_key_heads", 1, MAX_HEADS, heads)
    key_dim = fields.integer(
        "linear_key_head_dim", 1, MAX_DIM, max(1, 3 * hidden // 4 // key_heads)
    )
    rule = _gated_delta(fields, key_heads, heads, key_dim, 2 * key_dim)
    twice = fields.flag("linear_allow_neg_eigval", True)
    return {"recurrence": replace(rule, strength=2.0 if twice else 1.0, eps=1e-5)}


def _kimi_layers(fields: Fields, count: int) -> list[LayerSpec]:
    recurrent = _typed(fields, count, "linear_attention")
    if recurrent is None and fields.has("linear_attn_config"):
        attending = fields.section("linear_attn_config").items("full_attn_layers", int)
        recurrent = [layer + 1 not in attending for layer in range(count)]  # they count from 1
    if recurrent is None:
        recurrent = [layer == 0 or layer % 4 != 0 for layer in range(count)]
    if all(recurrent):
        raise fields.error("linear_attn_config", "has no layer that attends")
    return [LayerSpec(rope=None, recurrent=one) for one in recurrent]


def _kimi_switches(fields: Fields) -> dict[str, Any]:
    latent = read_latent(fields)
    own = "linear_attn_config"
    section = fields.section(own) if fields.has(own) else fields
    heads, width, kernel = (
        ("num_heads", "head_dim", "short_conv_kernel_size")
        if fields.has(own)
        else ("linear_num_heads", "linear_head_dim", "linear_conv_kernel_dim")
    )
    count, dim = (
        section.integer(heads, 1, MAX_HEADS, 32),
        section.integer(width, 1, MAX_DIM, 128),
    )
    rule = GatedDelta(
        count,
        count,
        dim,
        dim,
        section.integer(kernel, 2, MAX_KERNEL, 4),
        by_number=True,
        rank=dim,
        gate="sigmoid",
    )
    return {"recurrence": rule, "attention_scale": latent.width**-0.5}


def _kimi_experts(fields: Fields, layers: int) -> Mixture:
    kind = fields.text("moe_router_activation_func", "sigmoid")
    if kind != "sigmoid":
        rule = f"is {shown(kind)}; supported is sigmoid"
        raise fields.error("moe_router_activation_func", rule)
    return deepseek_experts(fields, layers)


_LFM = {"num_key_value_heads": 8, "norm_eps": 1e-5, "tie_word_embeddings": True}
_DELTA = {
    "head_dim": 256,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
}
_DELTA_MOE = _DELTA | {
    "num_key_value_heads": 2,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
}
_GATED = {"qk_norm": "heads", "gated_attention": True}

HYBRIDS: Mapping[str, Family] = {
    "Lfm2ForCausalLM": Family(
        "lfm2",
        _lfm_layers,
        _lfm_recurrence,
        width=_lfm_width,
        eps="norm_eps",
        theta=1_000_000.0,
        renamed={"tie_embedding": "tie_word_embeddings", "block_ff_dim": "intermediate_size"},
        defaults=_LFM | {"block_ffn_dim_multiplier": 1.0, "block_multiple_of": 256},
        switches={"naming": "lfm2", "qk_norm": "heads"},
    ),
    "Lfm2MoeForCausalLM": Family(
        "lfm2_moe",
        _lfm_layers,
        _lfm_recurrence,
        eps="norm_eps",
        theta=1_000_000.0,
        renamed={"tie_embedding": "tie_word_embeddings"},
        defaults=_LFM | {"num_experts_per_tok": 4},
        switches={"naming": "lfm2_moe", "qk_norm": "heads"},
        mixture=_lfm_experts,
    ),
    "KimiLinearForCausalLM": Family(
        "kimi_linear",
        _kimi_layers,
        _kimi_switches,
        latent=read_latent,
        mixture=_kimi_experts,
        renamed={
            "model_max_length": "max_position_embeddings",
            "moe_renormalize": "norm_topk_prob",
            "num_expert_group": "n_group",
            "num_experts": "n_routed_experts",
            "num_experts_per_token": "num_experts_per_tok",
            "num_shared_experts": "n_shared_experts",
        },
        defaults={
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 1024,
            "routed_scaling_factor": 2.446,
            "rms_norm_eps": 1e-5,
        },
        refused={ATTENTION_BIAS: False, "mla_use_nope": True},
        switches={"naming": "kimi_linear"},
    ),
    "OlmoHybridForCausalLM": Family(
        "olmo_hybrid",
        _olmo_layers,
        _olmo_recurrence,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 65_536},
        switches={"naming": "olmo_hybrid", "qk_norm": "whole"},
    ),
    "Qwen3NextForCausalLM": Family(
        "qwen3_next",
        _delta_layers,
        _delta_recurrence,
        predictors=("num_nextn_predict_layers", 1),
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        partial=0.25,
        defaults=_DELTA_MOE | {"num_experts_per_tok": 10},
        switches=_GATED | {"naming": "qwen3_next"},
        mixture=partial(qwen2_experts, default=512),
    ),
    "Qwen3_5ForCausalLM": Family(
        "qwen3_5_text",
        _delta_layers,
        _delta_recurrence,
        predictors=("mtp_num_hidden_layers", 1),
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        partial=0.25,
        defaults=_DELTA,
        switches=_GATED | {"naming": "qwen3_5"},
    ),
    "Qwen3_5MoeForCausalLM": Family(
        "qwen3_5_moe_text",
        _delta_layers,
        _delta_recurrence,
        predictors=("mtp_num_hidden_layers", 1),
        width=_expert_width,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        partial=0.25,
        defaults=_DELTA_MOE,
        switches=_GATED | {"naming": "qwen3_5_moe"},
        mixture=partial(qwen2_experts, default=256),
    ),
}
