"""How the keys and values of a GGUF file's model are made of latents, by its keys."""

import math
from typing import Any

from kvrt.model.families.latents import MAX_RANK
from kvrt.model.files.jsonfile import Fields
from kvrt.model.gguf.files import GGUF
from kvrt.model.spec import LatentSpec

LOG_MULTIPLIER = "rope.scaling.yarn_log_multiplier"
OLDER = "blk.0.attn_kv_b.weight"
"""In older files, what makes keys and values of a latent is one matrix."""


def read_latent(fields: Fields) -> LatentSpec | None:
    """None: keys and values are as pages keep them.

    Raises:
        ModelError: a key is missing or out of range.
    """
    if not fields.has("attention.kv_lora_rank"):
        return None
    rotated = fields.integer("rope.dimension_count", 2, MAX_RANK)
    key, value = (
        f"attention.{part}_length" + "_mla" * fields.has(f"attention.{part}_length_mla")
        for part in ("key", "value")
    )
    width = fields.integer(key, 1, MAX_RANK)
    if width <= rotated or rotated % 2:
        raise fields.error("rope.dimension_count", f"is {rotated}, but keys have {width}")
    return LatentSpec(
        rank=fields.integer("attention.kv_lora_rank", 1, MAX_RANK),
        rotated=rotated,
        plain=width - rotated,
        value=fields.integer(value, 1, MAX_RANK),
        query_rank=fields.integer("attention.q_lora_rank", 0, MAX_RANK, 0),
    )


def sharpening(fields: Fields) -> float:
    """By what attention is sharpened for contexts longer than in training; YaRN's mscale."""
    factor = fields.number("rope.scaling.factor", 1.0, 1e6, 1.0)
    return 1.0 + fields.number(LOG_MULTIPLIER, 0.0, 1e3, 0.0) * math.log(factor)


def latent_switches(gguf: GGUF, fields: Fields, latent: LatentSpec) -> dict[str, Any]:
    """What else they say of the model."""
    scale = latent.width**-0.5 * sharpening(fields) ** 2
    older = {"naming": "latents"} if OLDER in gguf.tensors else {}
    return {"attention_scale": scale, **older}
