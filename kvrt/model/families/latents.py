"""The families whose keys and values are made of latents, as rows: see `kvrt.model.families`."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kvrt.model.families.family import ATTENTION_BIAS, Family
from kvrt.model.families.mixtures import Mixture, deepseek_experts
from kvrt.model.families.rotary import section_of
from kvrt.model.families.scales import ministral_scales
from kvrt.model.files.jsonfile import Fields, shown
from kvrt.model.spec import LatentSpec

MAX_RANK = 1 << 16


def read_latent(fields: Fields) -> LatentSpec:
    rotated = fields.integer("qk_rope_head_dim", 2, MAX_RANK)
    if rotated % 2:
        raise fields.error("qk_rope_head_dim", f"is {rotated}; rotation needs an even number")
    return LatentSpec(
        rank=fields.integer("kv_lora_rank", 1, MAX_RANK),
        rotated=rotated,
        plain=fields.integer("qk_nope_head_dim", 1, MAX_RANK),
        value=fields.integer("v_head_dim", 1, MAX_RANK),
        query_rank=fields.integer("q_lora_rank", 1, MAX_RANK) if fields.has("q_lora_rank") else 0,
    )


def mscale(factor: float, share: float) -> float:
    """By what YaRN's makers sharpen attention for a context `factor` times as long."""
    return 0.1 * share * math.log(factor) + 1.0 if factor > 1 else 1.0


def latent_scales(fields: Fields) -> dict[str, Any]:
    """The scale of attention, of heads as wide as they are before they are absorbed."""
    latent, section = read_latent(fields), section_of(fields)
    scale = latent.width**-0.5
    if section is not None and section.has("mscale_all_dim"):
        share = section.number("mscale_all_dim", 0.0, 1e6)
        scale *= mscale(section.number("factor", 1.0, 1e6, 1.0), share) ** 2
    paired = fields.flag("rope_interleave", True)
    return {"attention_scale": scale, "naming": "latents" if paired else "halved_latents"}


def _mistral4_scales(fields: Fields) -> dict[str, Any]:
    return latent_scales(fields) | ministral_scales(fields) | {"naming": "mistral4"}


def _deepseek2_experts(fields: Fields, layers: int) -> Mixture:
    method = fields.text("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        supported = "greedy and group_limited_greedy"
        raise fields.error("topk_method", f"is {shown(method)}; supported are {supported}")
    experts, sparse = deepseek_experts(fields, layers, grouped=method != "greedy")
    router = replace(experts.router, score="softmax", renormalise=False, group_score="best")
    return replace(experts, router=router, correction=False), sparse


def _mistral4_experts(fields: Fields, layers: int) -> Mixture:
    experts, sparse = deepseek_experts(fields, layers)
    router = replace(experts.router, score="softmax")
    return replace(experts, router=router, correction=False), sparse


_LATENT = {
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
_REFUSED = {ATTENTION_BIAS: False}

LATENTS: Mapping[str, Family] = {
    "DeepseekV2ForCausalLM": Family(
        "deepseek_v2",
        scales=latent_scales,
        mixture=_deepseek2_experts,
        latent=read_latent,
        defaults=_LATENT
        | {
            "n_routed_experts": 64,
            "num_experts_per_tok": 6,
            "n_shared_experts": 2,
            "moe_intermediate_size": 1407,
            "first_k_dense_replace": 0,
        },
        refused=_REFUSED | {"mlp_bias": False, "norm_topk_prob": False},
    ),
    "DeepseekV3ForCausalLM": Family(
        "deepseek_v3",
        scales=latent_scales,
        mixture=deepseek_experts,
        latent=read_latent,
        predictors=("num_nextn_predict_layers", 0),
        defaults=_LATENT
        | {
            "n_routed_experts": 256,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 2048,
            "routed_scaling_factor": 2.5,
            "n_group": 8,
            "topk_group": 4,
            "first_k_dense_replace": 3,
        },
        refused=_REFUSED,
    ),
    "Glm4MoeLiteForCausalLM": Family(
        "glm4_moe_lite",
        scales=latent_scales,
        mixture=deepseek_experts,
        latent=read_latent,
        predictors=("num_nextn_predict_layers", 0),
        defaults=_LATENT
        | {
            "q_lora_rank": 768,
            "qk_nope_head_dim": 192,
            "v_head_dim": 256,
            "n_routed_experts": 64,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1536,
            "routed_scaling_factor": 1.8,
            "rms_norm_eps": 1e-5,
        },
        refused=_REFUSED,
    ),
    "Mistral4ForCausalLM": Family(
        "mistral4",
        scales=_mistral4_scales,
        mixture=_mistral4_experts,
        latent=read_latent,
        defaults=_LATENT
        | {
            "kv_lora_rank": 256,
            "q_lora_rank": 1024,
            "qk_nope_head_dim": 64,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 2048,
            "first_k_dense_replace": 0,
        },
        refused=_REFUSED | {"rope_interleave": True},
    ),
    "YoutuForCausalLM": Family(
        "youtu",
        scales=latent_scales,
        latent=read_latent,
        defaults=_LATENT | {"tie_word_embeddings": True},
        refused=_REFUSED,
    ),
}
