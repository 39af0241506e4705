"""The weights of a layer's attention, as `kvrt.model.weights` has them.

Where keys and values are made of latents (`spec.LatentSpec`), they are

    qkv          [query_rank + rank + rotated, hidden]   what queries are made of, then the latent
                                                         and what is rotated of the key; without a
                                                         query_rank, the queries' rows are first
    q_up         [heads * (plain + rotated), query_rank]
    key_up       [heads, rank, plain]                    float; from the queries' side: transposed
    value_up     [heads, value, rank]                    float
    o            [hidden, heads * value]

The last but one are one matrix in safetensors files, which is put in this order there.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from kvrt.model.spec import LatentSpec, LayerSpec, ModelSpec
from kvrt.model.weights.names import NAMINGS

ALWAYS_FLOATS = "kv_up", "key_up", "value_up"
"""Matrices that are not kept as codes: heads are multiplied apart, and some have turned rows."""

Rows = dict[str, int]
"""How many rows of a weight are of which kind."""


def attention_weights(
    spec: ModelSpec, layer: LayerSpec
) -> Iterator[tuple[str, Rows, tuple[int, ...]]]:
    """The weights of a layer's attention: field, rows by kind, and columns."""
    hidden = spec.hidden
    if spec.latent is not None:
        kv_up = "kv_up" in NAMINGS[spec.naming]
        yield from _latent_weights(spec.latent, spec.heads, hidden, kv_up)
    else:
        yield from _plain_weights(spec, layer)
    attended = spec.attended
    if spec.whole is not None:
        attended = spec.heads * spec.heads_of(layer.window)[1]
    yield "o", {"o": hidden}, (attended,)
    if spec.o_bias:
        yield "o_bias", {"o": hidden}, ()


def _plain_weights(
    spec: ModelSpec, layer: LayerSpec
) -> Iterator[tuple[str, Rows, tuple[int, ...]]]:
    kv_heads, head_dim = spec.heads_of(layer.window)
    q, kv = spec.heads * head_dim, kv_heads * head_dim
    qkv = {"q": q * (1 + spec.gated_attention), "k": kv, "v": kv}
    if spec.whole is not None and not layer.window and not spec.whole.values:
        del qkv["v"]
    whole = spec.qk_norm == "whole"
    yield "qkv", qkv, (spec.hidden,)
    if spec.qkv_bias:
        yield "qkv_bias", qkv, ()
    if spec.sinks:
        yield "sinks", {"sinks": spec.heads}, ()
    if spec.qk_norm not in ("none", "unit"):
        yield "q_norm", {"q_norm": q if whole else head_dim}, ()
        yield "k_norm", {"k_norm": kv if whole else head_dim}, ()


def _latent_weights(
    latent: LatentSpec, heads: int, hidden: int, kv_up: bool
) -> Iterator[tuple[str, Rows, tuple[int, ...]]]:
    """Args: kv_up: what makes keys and values of latents is one matrix in the files."""
    queries = heads * latent.width
    down = {"q_down": latent.query_rank} if latent.query_rank else {"q": queries}
    yield "qkv", down | {"kv_down": latent.rank + latent.rotated}, (hidden,)
    if latent.query_rank:
        yield "query_norm", {"query_norm": latent.query_rank}, ()
        yield "q_up", {"q_up": queries}, (latent.query_rank,)
    yield "latent_norm", {"latent_norm": latent.rank}, ()
    if kv_up:
        yield "kv_up", {"kv_up": heads * (latent.plain + latent.value)}, (latent.rank,)
    else:
        yield "key_up", {"key_up": heads * latent.rank}, (latent.plain,)
        yield "value_up", {"value_up": heads * latent.value}, (latent.rank,)


def heads_apart(spec: ModelSpec, layer: Mapping[str, Any]) -> dict[str, Any]:
    """A layer's weights by field, those of latents with a matrix for each head."""
    found = dict(layer)
    if (latent := spec.latent) is None:
        return found
    if "kv_up" in found:
        both = found.pop("kv_up").view(-1)
        keys = spec.heads * latent.rank * latent.plain
        found["key_up"], found["value_up"] = both[:keys], both[keys:]
    if "key_up" not in found:  # a layer with a recurrence in place of attention
        return found
    found["key_up"] = found["key_up"].view(spec.heads, latent.rank, latent.plain)
    found["value_up"] = found["value_up"].view(spec.heads, latent.value, latent.rank)
    return found
