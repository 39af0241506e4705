"""The families whose layers are mixtures of experts, as rows: see `kvrt.model.families`."""

from collections.abc import Mapping
from dataclasses import replace

from kvrt.model.families.family import ATTENTION_BIAS, Family
from kvrt.model.families.scales import (
    ernie_switches,
    glm4_switches,
    granite_scales,
    llama4_switches,
    phi_switches,
)
from kvrt.model.families.windows import (
    DEFAULT_WINDOW,
    MAX_LAYERS,
    late_layers,
    llama4_layers,
    mixed,
    qwen_layers,
    windowed_layers,
)
from kvrt.model.files.jsonfile import Fields
from kvrt.model.spec import ExpertSpec
from kvrt.spi import Router

MAX_EXPERTS = 1 << 12
MAX_WIDTH = 1 << 20

Mixture = tuple[ExpertSpec, list[bool]]
"""The experts, and which layers have them."""


def counts(fields: Fields, default: int, *names: str) -> tuple[int, int]:
    """How many experts there are, by the first of some names, and how many a token has."""
    name = next((name for name in names if name in fields), names[0])
    count = fields.integer(name, 1, MAX_EXPERTS, default)
    return count, fields.integer("num_experts_per_tok", 1, count)


def _width(fields: Fields, name: str) -> int:
    return fields.integer(name, 1, MAX_WIDTH)


def _mixtral(fields: Fields, layers: int) -> Mixture:
    count, chosen = counts(fields, 8, "num_local_experts", "num_experts")
    router = Router("softmax", chosen, renormalise=True)
    return ExpertSpec(count, _width(fields, "intermediate_size"), router), [True] * layers


def _softmax(fields: Fields, default: int) -> tuple[int, Router]:
    """Experts, and a router that renormalises where a field says so."""
    count, chosen = counts(fields, default, "num_experts", "num_local_experts")
    return count, Router("softmax", chosen, fields.flag("norm_topk_prob", False))


def _olmoe(fields: Fields, layers: int) -> Mixture:
    if fields.has("clip_qkv"):
        raise fields.error("clip_qkv", "is not supported")
    count, router = _softmax(fields, 64)
    return ExpertSpec(count, _width(fields, "intermediate_size"), router), [True] * layers


def _qwen3(fields: Fields, layers: int, default: int = 128) -> Mixture:
    count, router = _softmax(fields, default)
    dense = fields.items("mlp_only_layers", int) if fields.has("mlp_only_layers") else []
    step = fields.integer("decoder_sparse_step", 1, MAX_LAYERS, 1)
    sparse = [layer not in dense and (layer + 1) % step == 0 for layer in range(layers)]
    return ExpertSpec(count, _width(fields, "moe_intermediate_size"), router), sparse


def qwen2_experts(fields: Fields, layers: int, default: int = 60) -> Mixture:
    """Beside one that all tokens have, which is scaled."""
    experts, sparse = _qwen3(fields, layers, default)
    shared = _width(fields, "shared_expert_intermediate_size")
    return replace(experts, shared=shared, shared_scale=True), sparse


def _granite(fields: Fields, layers: int) -> Mixture:
    count, chosen = counts(fields, 8, "num_local_experts")
    width = _width(fields, "intermediate_size")
    return ExpertSpec(count, width, Router("chosen", chosen)), [True] * layers


def _gpt_oss(fields: Fields, layers: int) -> Mixture:
    count, chosen = counts(fields, 128, "num_local_experts", "num_experts")
    experts = ExpertSpec(
        count,
        _width(fields, "intermediate_size"),
        Router("chosen", chosen),
        router_bias=True,
        activation="clamped",
        bias=True,
        limit=fields.number("swiglu_limit", 0.0, 1e6, 7.0),
        alpha=fields.number("swiglu_alpha", 0.0, 1e6, 1.702),
    )
    return experts, [True] * layers


def deepseek_experts(fields: Fields, layers: int, *, grouped: bool = True) -> Mixture:
    """Of DeepSeek V3, and of others whose routers are its own.

    Args:
        grouped: experts are in groups, as the fields say.
    """
    count, chosen = counts(fields, 128, "n_routed_experts", "num_local_experts")
    width = _width(fields, "moe_intermediate_size")
    groups = fields.integer("n_group", 1, count, 1) if grouped else 1
    if count % groups:
        raise fields.error("n_group", f"is {groups}, which does not divide {count} experts")
    best = fields.integer("topk_group", 1, count, 1) if grouped else 1
    router = Router(
        "sigmoid",
        chosen,
        fields.flag("norm_topk_prob", True),
        fields.number("routed_scaling_factor", 0.0, 1e6, 1.0),
        groups,
        min(groups, best),
    )
    if chosen > count // groups * router.groups_chosen:
        raise fields.error("num_experts_per_tok", "is more than the groups of a token have")
    shared = width * fields.integer("n_shared_experts", 0, MAX_EXPERTS, 1)
    if fields.integer("moe_layer_freq", 1, MAX_LAYERS, 1) != 1:
        raise fields.error("moe_layer_freq", "other than 1 is not supported")
    first = fields.integer("first_k_dense_replace", 0, MAX_LAYERS, 1)
    sparse = [layer >= first for layer in range(layers)]
    if fields.has("mlp_layer_types"):
        kinds = fields.items("mlp_layer_types", str)
        if len(kinds) != layers or not {"dense", "sparse"}.issuperset(kinds):
            rule = f"must name dense or sparse for each of {layers} layers"
            raise fields.error("mlp_layer_types", rule)
        sparse = [kind == "sparse" for kind in kinds]
    return ExpertSpec(count, width, router, correction=True, shared=shared), sparse


def _phi(fields: Fields, layers: int) -> Mixture:
    count, chosen = counts(fields, 16, "num_local_experts")
    if chosen != 2:
        raise fields.error("num_experts_per_tok", f"is {chosen}; supported is 2")
    jitter = fields.number("router_jitter_noise", 0.0, 1.0, 0.01)
    router = Router("sparsemixer", chosen, jitter=jitter)
    return ExpertSpec(count, _width(fields, "intermediate_size"), router), [True] * layers


def _minimax(fields: Fields, layers: int) -> Mixture:
    count, chosen = counts(fields, 256, "num_local_experts", "num_experts")
    router = Router("sigmoid", chosen, renormalise=True)
    width = _width(fields, "intermediate_size")
    return ExpertSpec(count, width, router, correction=True), [True] * layers


def _ernie(fields: Fields, layers: int) -> Mixture:
    count = fields.integer("moe_num_experts", 1, MAX_EXPERTS, 64)
    width = _width(fields, "moe_intermediate_size")
    router = Router(
        "softmax",
        fields.integer("moe_k", 1, count, 6),
        renormalise=True,
        least=fields.number("moe_norm_min", 0.0, 1.0, 1e-12),
    )
    shared = width * fields.integer("moe_num_shared_experts", 0, MAX_EXPERTS, 2)
    first = fields.integer("moe_layer_start_index", 0, MAX_LAYERS, 1)
    last = fields.integer("moe_layer_end_index", -1, MAX_LAYERS, -1)
    every = fields.integer("moe_layer_interval", 1, MAX_LAYERS, 1)
    last = layers if last == -1 else last
    sparse = [first <= layer <= last and (layer + 1) % every == 0 for layer in range(layers)]
    return ExpertSpec(count, width, router, correction=True, shared=shared), sparse


def _llama4(fields: Fields, layers: int) -> Mixture:
    count, chosen = counts(fields, 16, "num_local_experts")
    if chosen != 1:
        raise fields.error("num_experts_per_tok", f"is {chosen}; supported is 1")
    width = _width(fields, "intermediate_size")
    step = fields.integer("interleave_moe_layer_step", 1, MAX_LAYERS, 1)
    named = fields.items("moe_layers", int) if fields.has("moe_layers") else None
    sparse = [
        layer in named if named is not None else (layer + 1) % step == 0 for layer in range(layers)
    ]
    router = Router("sigmoid", chosen)
    return ExpertSpec(count, width, router, shared=width, scaled_input=True), sparse


MIXTURES: Mapping[str, Family] = {
    "MixtralForCausalLM": Family(
        "mixtral",
        windowed_layers,
        mixture=_mixtral,
        theta=1_000_000.0,
        defaults={"num_key_value_heads": 8, "num_experts_per_tok": 2},
        switches={"naming": "mixtral"},
    ),
    "Qwen2MoeForCausalLM": Family(
        "qwen2_moe",
        qwen_layers,
        mixture=qwen2_experts,
        qkv_bias="qkv_bias",
        defaults={
            "num_key_value_heads": 16,
            "sliding_window": DEFAULT_WINDOW,
            "qkv_bias": True,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
        },
        switches={"naming": "qwen2_moe"},
    ),
    "Qwen3MoeForCausalLM": Family(
        "qwen3_moe",
        qwen_layers,
        mixture=_qwen3,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        defaults={
            "num_key_value_heads": 4,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
        },
        switches={"naming": "moe", "qk_norm": "heads"},
    ),
    "OlmoeForCausalLM": Family(
        "olmoe",
        mixture=_olmoe,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        defaults={"num_experts_per_tok": 8},
        switches={"naming": "moe", "qk_norm": "whole"},
    ),
    "GraniteMoeForCausalLM": Family(
        "granitemoe",
        scales=granite_scales,
        mixture=_granite,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        defaults={"num_experts_per_tok": 2},
        switches={"naming": "granite_moe"},
    ),
    "GptOssForCausalLM": Family(
        "gpt_oss",
        mixed(2),
        mixture=_gpt_oss,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        theta=150_000.0,
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 64,
            "sliding_window": 128,
            "num_experts_per_tok": 4,
            ATTENTION_BIAS: True,
        },
        switches={"naming": "gpt_oss", "sinks": True},
    ),
    "Glm4MoeForCausalLM": Family(
        "glm4_moe",
        scales=glm4_switches,
        predictors=("num_nextn_predict_layers", 0),
        mixture=deepseek_experts,
        qkv_bias=ATTENTION_BIAS,
        partial=0.5,
        defaults={
            "num_key_value_heads": 8,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 1408,
        },
        switches={"naming": "glm4_moe"},
    ),
    "Llama4ForCausalLM": Family(
        "llama4_text",
        llama4_layers,
        llama4_switches,
        mixture=_llama4,
        width=lambda fields: _width(fields, "intermediate_size_mlp"),
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        theta=500_000.0,
        within="attention_chunk_size",
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 128,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 16_384,
            "attention_chunk_size": 8192,
        },
        switches={"naming": "llama4"},
    ),
    "Dots1ForCausalLM": Family(
        "dots1",
        late_layers,
        mixture=deepseek_experts,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        defaults={
            "num_key_value_heads": 32,
            "max_window_layers": 62,
            "moe_intermediate_size": 1408,
            "num_experts_per_tok": 8,
            "n_shared_experts": 0,
            "first_k_dense_replace": 0,
            "norm_topk_prob": False,
        },
        switches={"naming": "dots1", "qk_norm": "heads"},
    ),
    "MiniMaxM2ForCausalLM": Family(
        "minimax_m2",
        mixture=_minimax,
        theta=5_000_000.0,
        partial=1.0,
        defaults={"num_key_value_heads": 8, "head_dim": 128, "num_experts_per_tok": 8},
        switches={"naming": "minimax_m2", "qk_norm": "whole"},
    ),
    "PhimoeForCausalLM": Family(
        "phimoe",
        windowed_layers,
        scales=phi_switches,
        mixture=_phi,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        theta=1_000_000.0,
        defaults={"num_key_value_heads": 8, "num_experts_per_tok": 2},
        switches={"naming": "mixtral", "norm": "layer", "norm_bias": True},
    ),
    "Ernie4_5_MoeForCausalLM": Family(
        "ernie4_5_moe",
        scales=ernie_switches,
        mixture=_ernie,
        qkv_bias="use_bias",
        o_bias="use_bias",
        mlp_bias="use_bias",
        theta=500_000.0,
        defaults={
            "num_key_value_heads": 4,
            "moe_intermediate_size": 1536,
            "tie_word_embeddings": True,
        },
        switches={"naming": "ernie4_5_moe"},
    ),
}
