"""What config.json says of Gemma 4: heads of two shapes, and experts beside a dense layer.

Its smallest models also have an embedding for each layer, and layers that read the keys of others:
they are refused by the fields that say so.
"""

from collections.abc import Mapping
from typing import Any

from kvrt.model.families.family import ATTENTION_BIAS, Family
from kvrt.model.families.mixtures import MAX_EXPERTS, MAX_WIDTH
from kvrt.model.families.scales import gemma3_scales
from kvrt.model.families.windows import mixed
from kvrt.model.files.jsonfile import Fields, shown
from kvrt.model.spec import ExpertSpec, LayerSpec, RopeSpec, WholeSpec
from kvrt.spi import Router

MAX_HEADS = 1 << 12
MAX_HEAD_DIM = 1 << 11
WHOLE, LOCAL = "full_attention", "sliding_attention"


def _layers(fields: Fields, count: int) -> list[LayerSpec]:
    """Of six layers one sees all, and the last one, whatever it is said to do."""
    return [*mixed(6, local=1)(fields, count)[:-1], LayerSpec()]


def _whole(fields: Fields) -> WholeSpec:
    """The heads of layers that see all, in either spelling."""
    shared = fields.flag("attention_k_eq_v", False)
    places = [(fields, "global_head_dim", "num_global_key_value_heads", shared)]
    if fields.has("per_layer_config"):
        section = fields.section("per_layer_config")
        places = [
            (section.section(name), "head_dim", "num_key_value_heads", True)
            for name in section.names()
        ]
    usual = fields.integer("num_key_value_heads", 1, MAX_HEADS)
    found = {
        WholeSpec(
            place.integer(heads, 1, MAX_HEADS) if own and place.has(heads) else usual,
            place.integer(dim, 2, MAX_HEAD_DIM, 512),
            not shared,
        )
        for place, dim, heads, own in places
    }
    if len(found) != 1:
        raise fields.error("per_layer_config", "has layers of more than two shapes")
    return found.pop()


def _switches(fields: Fields) -> dict[str, Any]:
    for name, usual in (("hidden_size_per_layer_input", 256), ("num_kv_shared_layers", 0)):
        if (count := fields.integer(name, 0, MAX_WIDTH, usual)) != 0:
            raise fields.error(
                name, f"is {count}; supported is 0, as the larger models of the family have it"
            )
    whole = _whole(fields)
    heads = fields.integer("num_attention_heads", 1, MAX_HEADS)
    if heads % whole.kv_heads or whole.head_dim % 2:
        raise fields.error(
            "num_global_key_value_heads",
            f"is {whole.kv_heads}, of width {whole.head_dim}, for {heads} query heads",
        )
    moe = fields.flag("enable_moe_block", False)
    return gemma3_scales(fields) | {
        "attention_scale": 1.0,
        "whole": whole,
        "naming": "gemma4_moe" if moe else "gemma4",
    }


def _ropes(fields: Fields, head_dim: int) -> tuple[RopeSpec, ...]:
    """Of layers that see all, in which the longest waves are left out; and of the others."""
    section = fields.section("rope_parameters") if fields.has("rope_parameters") else None

    def read(name: str, kind: str, theta: float) -> tuple[float, float]:
        if section is None or not section.has(name):
            return theta, 0.25
        own = section.section(name)
        if (said := own.text("rope_type", kind)) != kind:
            raise own.error("rope_type", f"is {shown(said)}; supported is {kind}")
        share = own.number("partial_rotary_factor", 0.0, 1.0, 0.25 if kind != "default" else 1.0)
        return own.number("rope_theta", 1.0, 1e15, theta), share

    width = _whole(fields).head_dim
    theta, share = read(WHOLE, "proportional", 1_000_000.0)
    turned = int(share * width // 2)
    local, _ = read(LOCAL, "default", 10_000.0)
    return (
        RopeSpec(theta, "proportional", turned=turned, dims=width),
        RopeSpec(local, dims=head_dim),
    )


def _mixture(fields: Fields, layers: int) -> tuple[ExpertSpec | None, list[bool]]:
    if not fields.flag("enable_moe_block", False):
        return None, [False] * layers
    count = fields.integer("num_experts", 1, MAX_EXPERTS)
    router = Router("softmax", fields.integer("top_k_experts", 1, count), renormalise=True)
    experts = ExpertSpec(
        count,
        fields.integer("moe_intermediate_size", 1, MAX_WIDTH),
        router,
        activation="gelu_tanh",
        shared=fields.integer("intermediate_size", 1, MAX_WIDTH),
        beside=True,
    )
    return experts, [True] * layers


GEMMA4: Mapping[str, Family] = {
    "Gemma4ForCausalLM": Family(
        "gemma4_text",
        _layers,
        _switches,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        activation="hidden_activation",
        ropes=_ropes,
        mixture=_mixture,
        defaults={
            "head_dim": 256,
            "num_key_value_heads": 4,
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-6,
            "sliding_window": 512,
            "tie_word_embeddings": True,
        },
        switches={"qk_norm": "heads", "value_norm": True},
    ),
}
