"""The attention function and the mask function that transformers calls by the name ``kvrt``."""

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from kvrt.errors import ConfigError
from kvrt.integrations.transformers.cache import NAME, Fresh
from kvrt.spi import AttentionParams

_MASKS = "masks but the causal one and padding"


def register() -> None:
    """Make the attention known to transformers, for all models of this process."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, padding_mask)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attend over a `KvrtCache`'s pages, in which the new keys and values are stored on the way.

    Args:
        module: the layer.
        query: [rows, heads, tokens, dim].
        key: [rows, KV heads, tokens, dim], as the cache's `update` returned it.
        value: likewise.
        attention_mask: as `padding_mask` returned it.
        scaling: of the dot products; None: one over the root of `dim`.
        dropout: must be 0.
        softcap: see `kvrt.spi.AttentionParams`.
        s_aux: [heads]; there called `sink_logits`.

    Returns:
        [rows, tokens, heads, dim of a value], and no weights.

    Raises:
        ConfigError: the model asks for what pages do not give.
    """
    fresh = getattr(key, "kvrt", None)
    if not isinstance(fresh, Fresh):
        raise ConfigError(
            f"the attention {NAME!r} was called with keys that are not as a KvrtCache gave them",
            fix="pass past_key_values=KvrtCache(model.config); a model that computes with what its"
            " cache returns before it attends cannot have one",
        )
    asked = {
        "dropout": dropout,
        "gradients": torch.is_grad_enabled() and query.requires_grad,
        "bias of positions": kwargs.get("position_bias") is not None,
        "weights to return": kwargs.get("output_attentions"),
        _MASKS: not getattr(module, "is_causal", True)
        or kwargs.get("is_causal") is False
        or (attention_mask is not None and attention_mask.dim() != 2),
    }
    for what, wanted in asked.items():
        if wanted:
            raise ConfigError(f"the attention {NAME!r} has no {what}")
    params = AttentionParams(
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=fresh.window,
        softcap=softcap or 0.0,
        sink_logits=None if s_aux is None else s_aux.float().contiguous(),
    )
    return fresh.attend(query, attention_mask, params), None


def padding_mask(
    *,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    **kwargs: object,
) -> Tensor | None:
    """What is padding, bool [rows, tokens before and new]; None: nothing is.

    How far back a layer sees, its cache knows.

    Raises:
        ConfigError: tokens are to see other things than those before them, e.g. all of an image's.
    """
    if not allow_is_causal_skip:
        raise ConfigError(f"the attention {NAME!r} has no {_MASKS}")
    if attention_mask is None or attention_mask.all():
        return None
    return attention_mask
