"""The families some of whose layers have a recurrence, as rows: see `kvrt.model.families`."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from kvrt.model.families.family import ATTENTION_BIAS, MAX_WIDTH, Family
from kvrt.model.families.mixtures import Mixture, counts, qwen2_experts
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
    key_heads = fields.integer("linear_num_key_heads", 1, MAX_HEADS, 16)
    value_heads = fields.integer("linear_num_value_heads", 1, MAX_HEADS, 32)
    if value_heads % key_heads:
        rule = f"is {value_heads}, no multiple of {key_heads} key heads"
        raise fields.error("linear_num_value_heads", rule)
    key_dim = fields.integer("linear_key_head_dim", 1, MAX_DIM, 128)
    value_dim = fields.integer("linear_value_head_dim", 1, MAX_DIM, 128)
    kernel = fields.integer("linear_conv_kernel_dim", 2, MAX_KERNEL, 4)
    return {"recurrence": GatedDelta(key_heads, value_heads, key_dim, value_dim, kernel)}


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
    "Qwen3NextForCausalLM": Family(
        "qwen3_next",
        _delta_layers,
        _delta_recurrence,
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
        width=_expert_width,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        partial=0.25,
        defaults=_DELTA_MOE,
        switches=_GATED | {"naming": "qwen3_5_moe"},
        mixture=partial(qwen2_experts, default=256),
    ),
}
