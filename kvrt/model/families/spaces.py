"""The families some of whose layers have a state space, as rows: see `kvrt.model.families`."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kvrt.model.families.family import ATTENTION_BIAS, MAX_WIDTH, Family
from kvrt.model.families.mixtures import counts, deepseek_experts
from kvrt.model.families.scales import granite_scales
from kvrt.model.files.jsonfile import Fields, shown
from kvrt.model.spec import ExpertSpec, LayerSpec
from kvrt.model.states import Gating, StateSpace
from kvrt.spi import Router

MAX_KERNEL = 1 << 8
MAX_HEADS = 1 << 12
MAX_DIM = 1 << 12

KINDS: Mapping[str, LayerSpec] = {
    "attention": LayerSpec(),
    "full_attention": LayerSpec(),
    "mamba": LayerSpec(recurrent=True),
    "linear_attention": LayerSpec(recurrent=True),
}
"""What layers are called in config.json, in old files and in new ones."""

BLOCKS: Mapping[str, LayerSpec] = {
    **{kind: replace(layer, rope=None, feeds=False) for kind, layer in KINDS.items()},
    "mlp": LayerSpec(mixes=False),
    "moe": LayerSpec(mixes=False),
}
"""Of models each of whose layers is one thing alone."""

LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
"""How Nemotron-H's old files spell them."""


def _named(fields: Fields, kinds: list[str], known: Mapping[str, LayerSpec]) -> list[LayerSpec]:
    for kind in kinds:
        if kind not in known:
            rule = f"names {shown(kind)}; supported are {', '.join(known)}"
            raise fields.error("layer_types", rule)
    layers = [known[kind] for kind in kinds]
    if not any(layer.attends for layer in layers):
        raise fields.error("layer_types", "has no layer that attends, which is not supported")
    if not any(layer.recurrent for layer in layers):
        raise fields.error("layer_types", "has no layer with a state space")
    return layers


def _typed(fields: Fields, count: int, known: Mapping[str, LayerSpec]) -> list[LayerSpec]:
    kinds = fields.items("layer_types", str)
    if len(kinds) != count:
        raise fields.error("layer_types", f"has {len(kinds)} entries for {count} layers")
    return _named(fields, kinds, known)


def _granite_layers(fields: Fields, count: int) -> list[LayerSpec]:
    name = "position_embedding_type"
    kind = fields.text(name) if fields.has(name) else "nope"
    if kind not in ("nope", "rope"):
        rule = f"is {shown(kind)}; supported are nope and rope"
        raise fields.error("position_embedding_type", rule)
    rope = 0 if kind == "rope" else None
    return [replace(layer, rope=rope) for layer in _typed(fields, count, KINDS)]


def _bamba_layers(fields: Fields, count: int) -> list[LayerSpec]:
    if fields.has("layer_types"):
        return _typed(fields, count, KINDS)
    attending = fields.items("attn_layer_indices", int)
    return _named(
        fields, ["attention" if at in attending else "mamba" for at in range(count)], KINDS
    )


def _falcon_layers(fields: Fields, count: int) -> list[LayerSpec]:
    return [LayerSpec(recurrent=True, beside=True)] * count


def _nemotron_kinds(fields: Fields, count: int) -> list[str]:
    if fields.has("layer_types"):
        return fields.items("layer_types", str)
    letters = fields.text("hybrid_override_pattern")
    if len(letters) != count:
        raise fields.error("hybrid_override_pattern", f"has {len(letters)} of {count} layers")
    return [LETTERS.get(letter, letter) for letter in letters]


def _nemotron_layers(fields: Fields, count: int) -> list[LayerSpec]:
    kinds = _nemotron_kinds(fields, count)
    if len(kinds) != count:
        raise fields.error("layer_types", f"has {len(kinds)} entries for {count} layers")
    return _named(fields, kinds, BLOCKS)


def _nemotron_experts(fields: Fields, layers: int) -> tuple[ExpertSpec | None, list[bool]]:
    sparse = [kind == "moe" for kind in _nemotron_kinds(fields, layers)]
    if not any(sparse):
        return None, sparse
    if fields.has("moe_latent_size"):
        raise fields.error("moe_latent_size", "is not supported")
    if fields.flag("mlp_bias", False):
        raise fields.error("mlp_bias", "of experts is not supported")
    experts, _ = deepseek_experts(fields, layers)
    shared = fields.integer("moe_shared_expert_intermediate_size", 1, MAX_WIDTH, 7688)
    return replace(experts, shared=shared, gated=False), sparse


def _space(fields: Fields, width: int, gating: Gating = "normed") -> StateSpace:
    """Args: width: of all heads, where no field says that of one."""
    groups = fields.integer("mamba_n_groups", 1, MAX_HEADS, 1)
    heads = fields.integer("mamba_n_heads", 1, MAX_HEADS, 128)
    if heads % groups:
        raise fields.error("mamba_n_heads", f"is {heads}, no multiple of {groups} groups")
    auto = not fields.has("mamba_d_head") or fields.holds_text("mamba_d_head")
    head_dim = width // heads if auto else fields.integer("mamba_d_head", 1, MAX_DIM)
    if head_dim * heads != width:
        raise fields.error("mamba_n_heads", f"is {heads}, which does not split {width} evenly")
    bias = fields.flag("mamba_proj_bias", False)
    return StateSpace(
        groups,
        heads,
        fields.integer("mamba_d_state", 1, MAX_DIM, 256),
        head_dim,
        fields.integer("mamba_d_conv", 2, MAX_KERNEL, 4),
        bias,
        bias,
        fields.flag("mamba_conv_bias", True),
        gating,
        _limits(fields),
    )


def _limits(fields: Fields) -> tuple[float, float]:
    """The shortest and the longest time."""
    name = "time_step_limit"
    if not fields.has(name):
        return 0.0, math.inf
    limits = fields.numbers(name, 0.0, math.inf)
    if len(limits) != 2 or limits[0] > limits[1]:
        raise fields.error(name, f"is {shown(limits)}; expected the shortest time and the longest")
    return limits[0], limits[1]


def _expanded(fields: Fields) -> int:
    hidden = fields.integer("hidden_size", 1, MAX_WIDTH)
    return hidden * fields.integer("mamba_expand", 1, 64, 2)


def _granite_switches(fields: Fields) -> dict[str, Any]:
    return granite_scales(fields) | _bamba_switches(fields)


def _bamba_switches(fields: Fields) -> dict[str, Any]:
    return {"recurrence": _space(fields, _expanded(fields))}


def _nemotron_switches(fields: Fields) -> dict[str, Any]:
    heads = fields.integer("mamba_n_heads", 1, MAX_HEADS, 128)
    width = heads * fields.integer("mamba_d_head", 1, MAX_DIM, 64)
    shortest = fields.number("time_step_min", 0.0, 1e6, 0.001)  # they ask for no other limit
    return {"recurrence": replace(_space(fields, width), limits=(shortest, math.inf))}


def _granite_experts(fields: Fields, layers: int) -> tuple[ExpertSpec | None, list[bool]]:
    width = fields.integer("shared_intermediate_size", 1, MAX_WIDTH, 1024)
    if fields.has("num_local_experts") and fields.integer("num_local_experts", 0, 1 << 16) == 0:
        return None, [False] * layers
    count, chosen = counts(fields, 8, "num_local_experts")
    expert = fields.integer("intermediate_size", 1, MAX_WIDTH)
    return ExpertSpec(count, expert, Router("chosen", chosen), shared=width), [True] * layers


def _scale(fields: Fields, name: str) -> float:
    return fields.number(name, 1e-6, 1e6, 1.0)


def _falcon_switches(fields: Fields) -> dict[str, Any]:
    """Its many scales. What multiplies queries and keys multiplies their products alike."""
    hidden = fields.integer("hidden_size", 1, MAX_WIDTH)
    heads = fields.integer("num_attention_heads", 1, MAX_HEADS)
    width = fields.integer("head_dim", 1, MAX_DIM, max(1, hidden // heads))
    read = _scale(fields, "attention_in_multiplier")
    keys = _scale(fields, "key_multiplier")
    gate, down = _scales(fields, "mlp_multipliers", 2)
    inner = _expanded(fields)
    if fields.has("mamba_d_ssm"):
        inner = fields.integer("mamba_d_ssm", 1, MAX_WIDTH)
    gating: Gating = "only"
    if fields.flag("mamba_rms_norm", False):
        gating = "before" if fields.flag("mamba_norm_before_gate", True) else "normed"
    into = _scale(fields, "ssm_in_multiplier")
    scales = tuple(into * one for one in _scales(fields, "ssm_multipliers", 5))
    space = _space(fields, inner, gating)
    return {
        "recurrence": replace(space, out_bias=fields.flag("projectors_bias", False), scales=scales),
        "attention_scale": read * read * keys * width**-0.5,
        "attended_scale": read * _scale(fields, "attention_out_multiplier"),
        "mixed_scale": _scale(fields, "ssm_out_multiplier"),
        "gate_scale": gate,
        "fed_scale": down,
        "embedding_scale": _scale(fields, "embedding_multiplier"),
        "logit_scale": _scale(fields, "lm_head_multiplier"),
    }


def _scales(fields: Fields, name: str, count: int) -> list[float]:
    if not fields.has(name):
        return [1.0] * count
    found = fields.numbers(name, 1e-6, 1e6)
    if len(found) != count:
        raise fields.error(name, f"has {len(found)} numbers; expected {count}")
    return found


_BLOCK_TYPES = {"layers_block_type": "layer_types"}

SPACES: Mapping[str, Family] = {
    "GraniteMoeHybridForCausalLM": Family(
        "granitemoehybrid",
        _granite_layers,
        _granite_switches,
        width=lambda fields: fields.integer("shared_intermediate_size", 1, MAX_WIDTH, 1024),
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        renamed=_BLOCK_TYPES,
        defaults={"num_experts_per_tok": 2, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
        switches={"naming": "granite_hybrid"},
        mixture=_granite_experts,
    ),
    "BambaForCausalLM": Family(
        "bamba",
        _bamba_layers,
        _bamba_switches,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        mlp_bias="mlp_bias",
        partial=0.5,
        renamed=_BLOCK_TYPES,
        defaults={"num_key_value_heads": 8, "rms_norm_eps": 1e-5},
        switches={"naming": "falcon_h1"},
    ),
    "FalconH1ForCausalLM": Family(
        "falcon_h1",
        _falcon_layers,
        _falcon_switches,
        mlp_bias="mlp_bias",
        defaults={"num_key_value_heads": 8, "rms_norm_eps": 1e-5},
        refused={ATTENTION_BIAS: False, "mamba_proj_bias": False},
        switches={"naming": "falcon_h1"},
    ),
    "NemotronHForCausalLM": Family(
        "nemotron_h",
        _nemotron_layers,
        _nemotron_switches,
        mlp_bias="mlp_bias",
        eps="layer_norm_epsilon",
        activation="mlp_hidden_act",
        renamed=_BLOCK_TYPES
        | {
            "mamba_num_heads": "mamba_n_heads",
            "mamba_head_dim": "mamba_d_head",
            "n_groups": "mamba_n_groups",
            "ssm_state_size": "mamba_d_state",
            "conv_kernel": "mamba_d_conv",
            "use_conv_bias": "mamba_conv_bias",
            "use_bias": "mamba_proj_bias",
        },
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 128,
            "layer_norm_epsilon": 1e-5,
            "mlp_hidden_act": "relu2",
            "mamba_n_groups": 8,
            "mamba_d_state": 128,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 7688,
        },
        switches={"naming": "nemotron_h", "gated": False},
        mixture=_nemotron_experts,
    ),
}
