"""The families some of whose layers have a recurrence, as rows: see `kvrt.model.families`."""

from collections.abc import Mapping
from typing import Any

from kvrt.model.family import MAX_WIDTH, Family
from kvrt.model.jsonfile import Fields, shown
from kvrt.model.mixtures import Mixture, counts
from kvrt.model.spec import ExpertSpec, LayerSpec, ShortConvolution
from kvrt.model.windows import MAX_LAYERS
from kvrt.spi import Router

MAX_KERNEL = 1 << 8


def _lfm_layers(fields: Fields, count: int) -> list[LayerSpec]:
    if fields.has("layer_types"):
        kinds = fields.items("layer_types", str)
        if len(kinds) != count:
            raise fields.error("layer_types", f"has {len(kinds)} entries for {count} layers")
        for kind in kinds:
            if kind not in ("full_attention", "conv"):
                rule = f"names {shown(kind)}; supported are full_attention and conv"
                raise fields.error("layer_types", rule)
        attends = [kind == "full_attention" for kind in kinds]
    elif fields.has("full_attn_idxs"):
        attending = fields.items("full_attn_idxs", int)
        attends = [layer in attending for layer in range(count)]
    else:
        attends = [True] * count
    if not any(attends):
        raise fields.error("layer_types", "has no full_attention, which is not supported")
    return [LayerSpec(recurrent=not attending) for attending in attends]


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
}
