"""The scales of the families, and what else a field of config.json says of the arithmetic."""

from typing import Any

from kvrt.model.families.rotary import MAX_POSITIONS
from kvrt.model.files.jsonfile import Fields


def _number(fields: Fields, name: str, default: float) -> float:
    """A scale: any positive number."""
    return fields.number(name, 1e-6, 1e6, default)


def _softcap(fields: Fields, name: str, default: float) -> float:
    """0 where the field is null."""
    return _number(fields, name, default) if name not in fields or fields.has(name) else 0.0


def gemma_scale(hidden: int) -> float:
    """What Gemma's embedding is multiplied by."""
    return float(hidden**0.5)


def gemma_scales(fields: Fields) -> dict[str, Any]:
    return {"embedding_scale": gemma_scale(fields.integer("hidden_size", 1, 1 << 20))}


def gemma3_scales(fields: Fields) -> dict[str, Any]:
    caps = {
        f"{ours}_softcap": fields.number(theirs, 1e-6, 1e6)
        for ours, theirs in (
            ("attention", "attn_logit_softcapping"),
            ("logit", "final_logit_softcapping"),
        )
        if fields.has(theirs)
    }
    scale = _number(fields, "query_pre_attn_scalar", 256.0) ** -0.5
    return gemma_scales(fields) | caps | {"attention_scale": scale}


def granite_scales(fields: Fields) -> dict[str, Any]:
    return {
        "embedding_scale": _number(fields, "embedding_multiplier", 1.0),
        "attention_scale": _number(fields, "attention_multiplier", 1.0),
        "residual_scale": _number(fields, "residual_multiplier", 1.0),
        "logit_scale": 1.0 / _number(fields, "logits_scaling", 1.0),
    }


def ministral_scales(fields: Fields) -> dict[str, Any]:
    for name in ("rope_scaling", "rope_parameters"):
        if fields.has(name) and fields.section(name).has("llama_4_scaling_beta"):
            section = fields.section(name)
            return {
                "query_beta": section.number("llama_4_scaling_beta", 0.0, 1e3),
                "query_positions": section.integer(
                    "original_max_position_embeddings", 1, MAX_POSITIONS
                ),
            }
    return {}


def llama4_switches(fields: Fields) -> dict[str, Any]:
    found: dict[str, Any] = {"qk_norm": "unit" if fields.flag("use_qk_norm", True) else "none"}
    if fields.flag("attn_temperature_tuning", True):
        found |= {
            "query_beta": fields.number("attn_scale", 0.0, 1e3, 0.1),
            "query_positions": fields.integer("floor_scale", 1, MAX_POSITIONS, 8192),
            "query_ahead": 1,
            "query_unrotated": True,
        }
    return found


def neox_switches(fields: Fields) -> dict[str, Any]:
    return {"parallel": fields.flag("use_parallel_residual", True)}


def cohere_scales(fields: Fields) -> dict[str, Any]:
    return {"logit_scale": _number(fields, "logit_scale", 0.0625)}


def ernie_switches(fields: Fields) -> dict[str, Any]:
    return {"head_bias": fields.flag("use_bias", False)}


def phi_switches(fields: Fields) -> dict[str, Any]:
    return {"head_bias": fields.flag("lm_head_bias", False)}


def glm4_switches(fields: Fields) -> dict[str, Any]:
    return {"qk_norm": "heads" if fields.flag("use_qk_norm", False) else "none"}
