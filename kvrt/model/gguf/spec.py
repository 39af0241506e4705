"""From the keys of a GGUF file to a `ModelSpec`, with every key checked before it is used.

What a key does not say, as whether projections have biases, is said by which tensors there are.
"""

import difflib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kvrt.errors import ModelError
from kvrt.model.config import (
    MAX_HEAD_DIM,
    MAX_HEADS,
    MAX_VOCAB,
    read_token,
)
from kvrt.model.families.decoders import FAMILIES
from kvrt.model.families.family import MAX_WIDTH, Family
from kvrt.model.families.rotary import MAX_POSITIONS, trained_positions
from kvrt.model.families.scales import gemma_scale
from kvrt.model.families.windows import MAX_LAYERS, mixed_layers
from kvrt.model.files.jsonfile import Fields, shown
from kvrt.model.gguf.architectures import ARCHITECTURES, Architecture
from kvrt.model.gguf.experts import ROUTER, read_experts
from kvrt.model.gguf.files import GGUF
from kvrt.model.gguf.latents import LOG_MULTIPLIER, latent_switches, read_latent
from kvrt.model.gguf.recurrences import read_recurrence, recurrent_layers
from kvrt.model.gguf.shapes import read_shapes
from kvrt.model.spec import LatentSpec, LayerSpec, ModelSpec, RopeSpec
from kvrt.model.states import StateSpace

ROPE_DIVISORS = "rope_freqs.weight"
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
"""Tensors that divide the frequencies of rotation."""

ORIGINAL = "rope.scaling.original_context_length"
EPS = {"rms": "attention.layer_norm_rms_epsilon", "layer": "attention.layer_norm_epsilon"}
GEMMAS = ("gemma", "gemma2", "gemma3_text", "gemma4_text")
"""Families whose embedding is scaled by its width, which no key says."""


def architecture_of(gguf: GGUF) -> str:
    """The name of a file's architecture.

    Raises:
        ModelError: kvrt does not support it; the message lists what it does.
    """
    fields = gguf.fields()
    name = fields.text("general.architecture")
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(name, ARCHITECTURES, n=1)
        raise fields.error(
            "general.architecture",
            f"is {shown(name)}, which is not supported; supported are " + ", ".join(ARCHITECTURES),
            fix=f"the nearest supported architecture is {near[0]}" if near else "",
        )
    return name


def read_spec(gguf: GGUF, *, predictor: bool = False) -> ModelSpec:
    """The model that a GGUF file describes.

    Args:
        predictor: with the layer that predicts further tokens, if it has one.

    Raises:
        ModelError: the architecture is not supported, a key is missing or out of range, or the file
            has no weights. The message names the key.
    """
    name = architecture_of(gguf)
    architecture = ARCHITECTURES[name]
    fields = gguf.fields(f"{name}.")
    if not gguf.tensors:
        raise ModelError(
            f"{gguf.path}: holds a vocabulary only, no tensors", fix="give a file that has weights"
        )
    experts = read_experts(gguf, fields, architecture)
    family = FAMILIES[(architecture.mixture if experts else "") or architecture.family]
    layers = fields.integer("block_count", 1, MAX_LAYERS)
    # Those that predict further tokens are the last ones.
    predictors = fields.integer("nextn_predict_layers", 0, layers - 1, 0)
    layers -= predictors
    hidden = fields.integer("embedding_length", 1, MAX_WIDTH)
    heads = _same(fields, "attention.head_count", layers, MAX_HEADS)
    recurrent = recurrent_layers(gguf, layers)
    recurrence = read_recurrence(gguf, fields, recurrent, tiled=architecture.tiled)
    rotated = not family.learned and not isinstance(recurrence, StateSpace)
    latent = read_latent(fields) if family.latent else None
    shapes = None
    if architecture.shapes:
        width = fields.integer("attention.key_length", 2, MAX_HEAD_DIM)
        divisors = _divisors(gguf, ROPE_DIVISORS, width) if ROPE_DIVISORS in gguf.tensors else ()
        shapes = read_shapes(gguf, fields, layers, divisors)
    kv_heads = shapes.kv_heads if shapes else 1
    if latent is None and shapes is None:
        kv_heads = _same(fields, "attention.head_count_kv", layers, MAX_HEADS, heads, recurrent)
    if heads % kv_heads:
        raise fields.error(
            "attention.head_count_kv", f"is {kv_heads}, which does not divide {heads} query heads"
        )
    positions = fields.integer("context_length", 1, MAX_POSITIONS)
    window = fields.integer("attention.sliding_window", 0, MAX_POSITIONS, 0)
    if shapes is not None:
        head_dim, ropes, read = shapes.head_dim, list(shapes.ropes), shapes.layers
    else:
        head_dim = latent.rank + latent.rotated if latent else _head_dim(fields, hidden, heads)
        ropes = []
        if rotated:
            ropes = _ropes(gguf, fields, architecture, family, latent, head_dim, positions, window)
        read = _layers(fields, architecture, layers, window, positions)
    stretched = max((rope.stretched_positions for rope in ropes[:1]), default=0)
    vocab = _vocab(gguf, fields)
    tokens = gguf.fields("tokenizer.ggml.")
    eos = [read_token(tokens, key, vocab) for key in ("eos_token_id", "eot_token_id")]
    return ModelSpec(
        architecture=name,
        vocab=vocab,
        hidden=hidden,
        intermediate=_same(fields, "feed_forward_length", layers, MAX_WIDTH),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        layers=tuple(
            replace(
                layer,
                rope=layer.rope if rotated else None,
                experts=ROUTER.format(at) in gguf.tensors,
                recurrent=recurrent[at],
            )
            for at, layer in enumerate(read)
        ),
        max_positions=min(max(positions, stretched), MAX_POSITIONS),
        norm_eps=fields.number(EPS[family.switches.get("norm", "rms")], 0.0, 1.0),
        activation=architecture.activation,
        ropes=tuple(ropes),
        tied="output.weight" not in gguf.tensors,
        predictor=LayerSpec(experts=ROUTER.format(layers) in gguf.tensors)
        if predictor and predictors
        else None,
        qkv_bias=not {"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"}.isdisjoint(gguf.tensors),
        o_bias="blk.0.attn_output.bias" in gguf.tensors,
        mlp_bias="blk.0.ffn_down.bias" in gguf.tensors,
        experts=experts,
        latent=latent,
        learned_positions=family.learned,
        recurrence=recurrence,
        bos=read_token(tokens, "bos_token_id", vocab),
        eos=tuple(dict.fromkeys(token for token in eos if token is not None)),
        **_scales(fields, architecture, hidden, heads, layers),
        **{
            **family.switches,
            **_switches(gguf, architecture, mixed=experts is not None),
            **_parallel(fields),
            **(latent_switches(gguf, fields, latent) if latent else {}),
            **({"whole": shapes.whole, "attention_scale": 1.0} if shapes else {}),
        },
    )


def _ropes(
    gguf: GGUF,
    fields: Fields,
    architecture: Architecture,
    family: Family,
    latent: LatentSpec | None,
    head_dim: int,
    positions: int,
    window: int,
) -> list[RopeSpec]:
    """The rotations: of the layers that see all, and of those with a window if it is another."""
    dims = latent.rotated if latent else _dims(fields, family, head_dim)
    rope = trained_positions(_rope(gguf, fields, dims, positions), family, positions)
    dims = dims if dims < head_dim else 0
    ropes = [replace(rope, dims=dims, truncate=architecture.truncate)]
    if window and architecture.local_theta is not None:
        theta = architecture.local_theta or rope.theta
        theta = fields.number("rope.freq_base_swa", 1.0, 1e15, theta)
        ropes.append(RopeSpec(theta, dims=dims))
    return ropes


def _switches(gguf: GGUF, architecture: Architecture, *, mixed: bool) -> dict[str, Any]:
    """Those of `ModelSpec` that an architecture says, or which tensors there are; `mixed`: there
    are experts."""
    naming = (architecture.naming_of_experts if mixed else "") or architecture.naming
    switches: dict[str, Any] = {"naming": naming} if naming else {}
    if architecture.normed_heads and "blk.0.attn_q_norm.weight" in gguf.tensors:
        switches["qk_norm"] = "heads"
    return switches


def _same(
    fields: Fields,
    name: str,
    layers: int,
    most: int,
    default: int | None = None,
    but: Sequence[bool] = (),
) -> int:
    """A number for all layers, which some files give for each.

    Args:
        but: the layers that have none.
    """
    if not fields.holds_list(name):
        return fields.integer(name, 1, most, default)
    numbers = fields.items(name, int)
    whole = len(numbers) == layers
    if whole and any(but):
        numbers = [number for number, has_none in zip(numbers, but, strict=True) if not has_none]
    if not whole or len(set(numbers)) != 1:
        raise fields.error(
            name, f"is {shown(numbers)}; layers of different sizes are not supported"
        )
    if not 1 <= numbers[0] <= most:
        raise fields.error(name, f"has {numbers[0]}; expected 1 to {most}")
    return int(numbers[0])


def _head_dim(fields: Fields, hidden: int, heads: int) -> int:
    if not fields.has("attention.key_length") and hidden % heads:
        raise fields.error(
            "attention.head_count", f"is {heads}, which does not split {hidden} evenly"
        )
    head_dim = fields.integer("attention.key_length", 2, MAX_HEAD_DIM, hidden // heads)
    if head_dim % 2:
        raise fields.error("attention.key_length", f"is {head_dim}; rotation needs an even number")
    name = "attention.value_length"
    if (other := fields.integer(name, 1, MAX_HEAD_DIM, head_dim)) != head_dim:
        raise fields.error(
            name,
            f"is {other}, but keys have {head_dim}: values of another width are not supported",
        )
    return head_dim


def _dims(fields: Fields, family: Family, head_dim: int) -> int:
    """How many dimensions of a head are rotated."""
    name = "rope.dimension_count"
    dims = fields.integer(name, 2, head_dim, head_dim)
    if dims < head_dim and family.partial is None:
        raise fields.error(
            name,
            f"is {dims}, but keys have {head_dim}: rotation of a part of each head is not"
            " supported",
        )
    if dims % 2:
        raise fields.error(name, f"is {dims}; rotation needs an even number")
    return dims


def _vocab(gguf: GGUF, fields: Fields) -> int:
    if "token_embd.weight" not in gguf.tensors:
        raise ModelError(
            f"{gguf.path}: tensor 'token_embd.weight' is missing",
            fix="the file is not a whole model: download it again",
        )
    rows = gguf.tensors["token_embd.weight"][1].shape[0]
    vocab = fields.integer("vocab_size", 1, MAX_VOCAB, rows)
    if vocab != rows:
        raise fields.error("vocab_size", f"is {vocab}, but the embedding has {rows} rows")
    return vocab


def _layers(
    fields: Fields, architecture: Architecture, count: int, window: int, positions: int
) -> tuple[LayerSpec, ...]:
    if architecture.mixed and window:
        pattern = fields.integer(
            "attention.sliding_window_pattern", 1, MAX_LAYERS, architecture.mixed
        )
        local = int(architecture.local_theta is not None)
        whole = 0 if architecture.whole_rotated else None
        return tuple(mixed_layers(pattern, count, window, local, whole))
    window = window if window < positions else 0
    if fields.has("attention.sliding_window_pattern"):
        raise fields.error("attention.sliding_window_pattern", "is not supported")
    if window and not architecture.windows:
        raise fields.error(
            "attention.sliding_window", f"is {window}, and no key says which layers have it"
        )
    every = architecture.unrotated
    return tuple(
        LayerSpec(window, rope=None if every and (layer + 1) % every == 0 else 0)
        for layer in range(count)
    )


def _scales(
    fields: Fields, architecture: Architecture, hidden: int, heads: int, layers: int
) -> dict[str, Any]:
    """The numbers of `ModelSpec` that end in scale or softcap."""
    scales = {
        ours: fields.number(key, 1e-6, 1e6)
        for ours, key in (
            ("embedding_scale", "embedding_scale"),
            ("attention_scale", "attention.scale"),
            ("residual_scale", "residual_scale"),
            ("logit_scale", "logit_scale"),
            ("attention_softcap", "attn_logit_softcapping"),
            ("logit_softcap", "final_logit_softcapping"),
        )
        if fields.has(key) and fields.number(key, 0.0, 1e6) != 0.0
    }
    if architecture.divides_logits and "logit_scale" in scales:
        scales["logit_scale"] = 1.0 / scales["logit_scale"]
    if FAMILIES[architecture.family].model_type in GEMMAS:
        scales["embedding_scale"] = gemma_scale(hidden)
    if layers == architecture.odd:
        scales["attention_scale"] = (hidden / heads) ** -0.5
    return scales


def _parallel(fields: Fields) -> dict[str, bool]:
    """Whether the branches of a layer are parallel, where a key says it."""
    name = "use_parallel_residual"
    return {"parallel": fields.flag(name)} if fields.has(name) else {}


def _rope(gguf: GGUF, fields: Fields, dims: int, positions: int) -> RopeSpec:
    theta = fields.number("rope.freq_base", 1.0, 1e15, 10_000.0)
    kind = fields.text("rope.scaling.type", "none")
    if ROPE_DIVISORS in gguf.tensors:
        if kind != "none":
            raise fields.error("rope.scaling.type", f"is {shown(kind)} beside {ROPE_DIVISORS}")
        return RopeSpec(theta, "listed", divisors=_divisors(gguf, ROPE_DIVISORS, dims))
    if SHORT in gguf.tensors and LONG in gguf.tensors:
        return RopeSpec(
            theta,
            "longrope",
            original_positions=fields.integer(ORIGINAL, 1, MAX_POSITIONS, positions),
            attention_factor=fields.number("rope.scaling.attn_factor", 1e-6, 1e6, 1.0),
            divisors=_divisors(gguf, SHORT, dims),
            long_divisors=_divisors(gguf, LONG, dims),
        )
    if kind == "none":
        if fields.number("rope.scale_linear", 0.0, 1e6, 1.0) not in (0.0, 1.0):
            raise fields.error("rope.scale_linear", "is not supported")
        return RopeSpec(theta)
    if kind not in ("linear", "yarn"):
        raise fields.error(
            "rope.scaling.type", f"is {shown(kind)}; supported are none, linear, yarn"
        )
    factor = fields.number("rope.scaling.factor", 1.0, 1e6)
    original = fields.integer(ORIGINAL, 1, MAX_POSITIONS, positions)
    if kind == "linear":
        return RopeSpec(theta, "linear", factor, original)
    if theta <= 1.0:
        raise fields.error("rope.freq_base", "must exceed 1 for yarn")
    others = [("yarn_ext_factor", 1.0), ("alpha", 0.0)]
    if not fields.has("attention.kv_lora_rank"):
        others.append(("yarn_log_multiplier", 0.0))
    for name, usual in others:
        if (other := fields.number(f"rope.scaling.{name}", -1e6, 1e6, usual)) != usual:
            raise fields.error(f"rope.scaling.{name}", f"is {other:g}; supported is {usual:g}")
    fast = fields.number("rope.scaling.yarn_beta_fast", 1e-6, 1e6, 32.0)
    slow = fields.number("rope.scaling.yarn_beta_slow", 1e-6, 1e6, 1.0)
    if fast <= slow:
        raise fields.error("rope.scaling.yarn_beta_fast", f"is {fast:g}; it must exceed {slow:g}")
    # Equation 22 of arXiv 2309.00071: logits are sharpened as the context is stretched.
    usual = 0.1 * math.log(factor) + 1.0
    if fields.has(LOG_MULTIPLIER):  # sharpens attention itself, in place of what is rotated
        usual = 1.0
    return RopeSpec(
        theta,
        "yarn",
        factor,
        original,
        beta_fast=fast,
        beta_slow=slow,
        attention_factor=fields.number("rope.scaling.yarn_attn_factor", 1e-6, 1e6, usual),
    )


def _divisors(gguf: GGUF, name: str, dims: int) -> tuple[float, ...]:
    path, entry = gguf.tensors[name]
    where = f"{path}: tensor {shown(name)}"
    if entry.dtype != "F32" or entry.shape != (dims // 2,):
        raise ModelError(
            f"{where}: is {entry.dtype} {list(entry.shape)}; expected F32 [{dims // 2}]"
        )
    with open(path, "rb") as file:
        file.seek(entry.start)
        values = memoryview(file.read(entry.end - entry.start)).cast("f").tolist()
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise ModelError(f"{where}: has values that are not positive numbers")
    return tuple(values)
