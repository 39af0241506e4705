"""The attention that transformers' modules call by the name of `NAME`, and who answers.

A module computes everything but attention for one token at a time, so the tokens of all sequences
can lie behind one another in one row; only attention knows where each begins.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from kvrt.errors import ModelError

NAME = "kvrt-steps"


class Call(NamedTuple):
    """One layer's attention over a step's tokens.

    Args:
        module: the layer's.
        q: [tokens, heads, dim].
        k: [tokens, KV heads, dim].
        v: [tokens, KV heads, dim of a value].
        scale, window, softcap, sinks: as in `kvrt.spi.AttentionParams`.
    """

    module: nn.Module
    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    window: int
    softcap: float
    sinks: Tensor | None


class Attends(Protocol):
    """Answers the calls of a step."""

    def attend(self, call: Call) -> Tensor:
        """What the tokens see, [tokens, heads, dim of a value]."""


_ASKED: ContextVar[Attends] = ContextVar("kvrt_attends")


@contextmanager
def asking(whom: Attends) -> Iterator[None]:
    """Modules that are called meanwhile, in this thread, attend by `whom`."""
    token = _ASKED.set(whom)
    try:
        yield
    finally:
        _ASKED.reset(token)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """What transformers calls: of one row, [1, heads, tokens, dim]."""
    if not getattr(module, "is_causal", True) or kwargs.get("is_causal") is False:
        raise ModelError(f"{type(module).__name__} sees tokens that come later")
    if kwargs.get("position_bias") is not None:
        raise ModelError(f"{type(module).__name__} has a bias of positions, which pages do not")
    q, k, v = (heads[0].transpose(0, 1) for heads in (query, key, value))
    scale = q.shape[-1] ** -0.5 if scaling is None else float(scaling)
    window = _window(module, sliding_window)
    call = Call(module, q, k, v, scale, window, softcap or 0.0, s_aux)
    return _ASKED.get().attend(call)[None], None


def _window(module: nn.Module, said: int | None) -> int:
    """How far back a layer sees: as its configuration says, or as it says itself."""
    config: Any = getattr(module, "config", None)
    at: Any = getattr(module, "layer_idx", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None or at is None:
        return said or 0
    if kinds[at] not in ("full_attention", "sliding_attention"):
        raise ModelError(f"layer {at} is {kinds[at]}, which pages of keys and values do not serve")
    if kinds[at] == "full_attention":
        return 0
    return int(said or config.sliding_window)


def no_mask(**kwargs: object) -> None:
    """What transformers calls for a mask: pages know what each token sees."""


def plain_attention(call: Call) -> Tensor:
    """Attention in torch's operators, of the last tokens of one text; keys and values are of all.

    Returns:
        [tokens, heads, dim of a value]
    """
    q, k, v = (heads.float().transpose(0, 1) for heads in (call.q, call.k, call.v))
    each = len(q) // len(k)
    k, v = k.repeat_interleave(each, 0), v.repeat_interleave(each, 0)
    scores = q @ k.transpose(1, 2) * call.scale
    if call.softcap:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    new, total = scores.shape[1:]
    back = torch.arange(total - new, total)[:, None] - torch.arange(total)
    seen = (back >= 0) & (back < (call.window or total))
    scores = scores.masked_fill(~seen.to(scores.device), -torch.inf)
    if call.sinks is not None:
        sinks = call.sinks.float().view(-1, 1, 1).expand(-1, new, 1)
        scores, v = torch.cat((scores, sinks), -1), F.pad(v, (0, 0, 0, 1))
    return (scores.softmax(-1) @ v).transpose(0, 1).to(call.q.dtype)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, no_mask)
