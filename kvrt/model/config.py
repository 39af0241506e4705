"""From a Hugging Face config.json to a `ModelSpec`, with every field checked before it is used.

The families differ in a few facts, which are rows in `kvrt.model.families`; everything else is read
from the file. A field that is missing has the default of the family's class in transformers; null
means what it means there, and is refused where it means nothing.
"""

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from kvrt.errors import ModelError
from kvrt.model.encoder.families import ENCODERS
from kvrt.model.families.decoders import FAMILIES, NESTED
from kvrt.model.families.family import MAX_WIDTH, Family
from kvrt.model.families.rotary import MAX_POSITIONS, read_ropes
from kvrt.model.families.windows import MAX_LAYERS
from kvrt.model.files.jsonfile import Fields, read_object, shown
from kvrt.model.spec import ExpertSpec, LayerSpec, MLPActivation, ModelSpec
from kvrt.model.speech import WHISPER
from kvrt.spi import Activation, DType

# Upper limits, about ten times the largest published model: beyond them a value is damage, and
# would be found only when its memory is asked for.
MAX_VOCAB = 1 << 24
MAX_HEADS = 1 << 12
MAX_HEAD_DIM = 1 << 11

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
UNGATED: Mapping[str, MLPActivation] = {
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
    "relu2": "relu2",
}
SHARED = ("dtype", "torch_dtype", "bos_token_id", "eos_token_id")
"""Fields that a model which sees may have for all of it."""

DTYPES: Mapping[str, DType] = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
}


HEADLESS = "Model"
"""How the names of architectures end that have no output matrix."""

BOTH_WAYS = {"use_bidirectional_attention": True, "is_causal": False}
"""Fields that say so where tokens also see what comes later."""


def is_decoder(path: Path) -> bool:
    """Whether a config.json names a decoder that kvrt has, with an output matrix or without."""
    values = read_object(path)
    names = values.get("architectures")
    return isinstance(names, list) and any(
        isinstance(name, str) and _with_head(name) in (*FAMILIES, *NESTED) for name in names
    )


def read_config(path: Path, *, head: bool = True, predictor: bool = False) -> ModelSpec:
    """The model that a config.json describes.

    Args:
        path: the file.
        head: False: for the states of its tokens alone, so that it may have no output matrix.
        predictor: with the layer that predicts further tokens, if it has one; of several, the
            first.

    Raises:
        ModelError: the file is missing or damaged, the architecture is not supported (the message
            lists those that are), or a field is missing or out of range (the message names it).
    """
    values = read_object(path)
    if not head and isinstance(names := values.get("architectures"), list):
        values = {**values, "architectures": [_with_head(name) for name in names]}
    architecture, fields = _normal(str(path), values)
    family = FAMILIES[architecture]
    for name, value in BOTH_WAYS.items():
        if fields.has(name) and fields.values()[name] in (value, "all"):
            raise fields.error(name, "makes tokens see what comes later, which is not supported")
    for name, value in family.refused.items():
        if fields.has(name) and fields.flag(name) != value:
            raise fields.error(name, "is not supported")
    vocab = fields.integer("vocab_size", 1, MAX_VOCAB)
    hidden = fields.integer("hidden_size", 1, MAX_WIDTH)
    heads = fields.integer("num_attention_heads", 1, MAX_HEADS)
    latent = None if family.latent is None else family.latent(fields)
    kv_heads = 1 if latent else _kv_heads(fields, heads)
    if heads % kv_heads:
        raise fields.error(
            "num_key_value_heads", f"is {kv_heads}, which does not divide {heads} query heads"
        )
    layers = family.layers(fields, _count(fields))
    experts: ExpertSpec | None = None
    if family.mixture is not None:
        experts, sparse = family.mixture(fields, len(layers))
        layers = [replace(one, experts=has) for one, has in zip(layers, sparse, strict=True)]
    max_positions = fields.integer("max_position_embeddings", 1, MAX_POSITIONS)
    if latent is None:
        head_dim, dims = _head_dim(fields, "head_dim" in family.defaults, hidden, heads), 0
    else:
        head_dim, dims = latent.rank + latent.rotated, latent.rotated
    if family.ropes is not None:
        ropes = family.ropes(fields, head_dim)
    else:
        rotated = any(layer.rope is not None for layer in layers)
        ropes = read_ropes(fields, family, head_dim, max_positions, dims) if rotated else ()
    stretched = max((rope.stretched_positions for rope in ropes[:1]), default=0)
    return ModelSpec(
        architecture=architecture,
        vocab=vocab,
        hidden=hidden,
        intermediate=family.width(fields)
        if family.width
        else _intermediate(fields, family.wide * hidden),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        layers=tuple(layers),
        max_positions=min(max(max_positions, stretched), _within(fields, family)),
        norm_eps=fields.number(family.eps, 0.0, 1.0),
        activation=_activation(fields, family),
        ropes=ropes,
        tied=not head or fields.flag("tie_word_embeddings", False),
        predictor=_predictor(fields, family) if predictor else None,
        qkv_bias=_says(fields, family.qkv_bias),
        o_bias=_says(fields, family.o_bias),
        mlp_bias=_says(fields, family.mlp_bias),
        experts=experts,
        latent=latent,
        learned_positions=family.learned,
        bos=read_token(fields, "bos_token_id", vocab),
        eos=read_tokens(fields, "eos_token_id", vocab),
        dtype=read_dtype(fields),
        **family.scales(fields),
        **family.switches,
    )


def _normal(source: str, values: Mapping[str, Any]) -> tuple[str, Fields]:
    """The architecture, and the fields of its decoder with the defaults of its family.

    Models that see have a decoder's fields in a section, and what both share beside it; the first
    of them have all fields beside each other.
    """
    fields = Fields(source, values)
    architecture = _architecture(fields)
    if architecture in NESTED:
        decoders = NESTED[architecture]
        architecture = next(iter(decoders.values()))
        if fields.has("text_config"):
            kind = fields.section("text_config").text("model_type", next(iter(decoders)))
            if kind not in decoders:
                raise fields.error(
                    "text_config.model_type",
                    f"is {shown(kind)}; supported are {', '.join(decoders)}",
                )
            architecture = decoders[kind]
            text = fields.section("text_config").values()
            shared = {name: value for name, value in values.items() if name in SHARED}
            merged = {**FAMILIES[architecture].defaults, **shared, **text}
            if "tie_word_embeddings" in values:
                merged["tie_word_embeddings"] = values["tie_word_embeddings"]
            return architecture, Fields(source, merged, "text_config.")
    family = FAMILIES[architecture]
    values = {family.renamed.get(name, name): value for name, value in values.items()}
    return architecture, Fields(source, {**family.defaults, **values})


def _with_head(name: Any) -> Any:
    """The name of the architecture that writes text, of one that has no output matrix."""
    if not isinstance(name, str) or not name.endswith(HEADLESS):
        return name
    stem = name.removesuffix(HEADLESS).removesuffix("Text")
    return next((own for own in FAMILIES if own.startswith((f"{stem}For", f"{stem}LMHead"))), name)


def _architecture(fields: Fields) -> str:
    known = [*FAMILIES, *NESTED]
    if fields.has("architectures") or not fields.has("model_type"):
        names = fields.items("architectures", str)
    else:
        kind = fields.text("model_type")
        names = [name for name, family in FAMILIES.items() if family.model_type == kind] or [kind]
    for name in names:
        if name in known:
            return cast(str, name)
    wanted = ", ".join(names) or "nothing"
    if any(name in ENCODERS for name in names):
        raise fields.error(
            "architectures",
            f"names {shown(wanted)}, an encoder, which says nothing",
            fix="kvrt embed makes vectors of texts with it",
        )
    if WHISPER in names:
        raise fields.error(
            "architectures",
            f"names {shown(wanted)}, which writes what is said, and answers nothing",
            fix="kvrt transcribe FILE --model MODEL is for it",
        )
    near = difflib.get_close_matches(wanted, known, n=1)
    raise fields.error(
        "architectures",
        f"names {shown(wanted)}, which is not supported; supported are " + ", ".join(known),
        fix=(f"the nearest supported architecture is {near[0]}; " if near else "")
        + "--model-impl transformers runs what transformers has, slower",
    )


def _count(fields: Fields) -> int:
    """How many layers there are; where only their kinds are listed, as many."""
    listed = not fields.has("num_hidden_layers") and fields.has("layer_types")
    default = len(fields.items("layer_types", str)) if listed else None
    return fields.integer("num_hidden_layers", 1, MAX_LAYERS, default)


def _predictor(fields: Fields, family: Family) -> LayerSpec | None:
    """The layer that predicts further tokens: it attends, and is a mixture where there are some."""
    if family.predictors is None:
        return None
    name, usual = family.predictors
    if not fields.integer(name, 0, MAX_LAYERS, usual):
        return None
    return LayerSpec(experts=family.mixture is not None)


def _says(fields: Fields, said: bool | str) -> bool:
    """What a family says of all its models, or a field of one."""
    return fields.flag(said, False) if isinstance(said, str) else said


def _within(fields: Fields, family: Family) -> int:
    """The longest context that there can be, whatever else is said."""
    named = family.within and fields.has(family.within)
    return fields.integer(family.within, 1, MAX_POSITIONS) if named else MAX_POSITIONS


def _intermediate(fields: Fields, usual: int) -> int:
    """The width of the feed-forward layer; `usual`: where no field says, 0: one must."""
    name = "intermediate_size"
    return usual if usual and not fields.has(name) else fields.integer(name, 1, MAX_WIDTH)


def _kv_heads(fields: Fields, heads: int) -> int:
    if "num_key_value_heads" in fields and not fields.has("num_key_value_heads"):
        return heads
    return fields.integer("num_key_value_heads", 1, MAX_HEADS, heads)


def _head_dim(fields: Fields, own: bool, hidden: int, heads: int) -> int:
    """The width of a head; `own`: the family has a default, so null does not mean the quotient."""
    if fields.has("head_dim") or own:
        head_dim = fields.integer("head_dim", 1, MAX_HEAD_DIM)
        if head_dim % 2:
            raise fields.error("head_dim", f"is {head_dim}, but rotation needs an even number")
        return head_dim
    if hidden % (2 * heads) or hidden // heads > MAX_HEAD_DIM:
        raise fields.error(
            "num_attention_heads", f"is {heads}, which does not split hidden_size {hidden} evenly"
        )
    return hidden // heads


def _activation(fields: Fields, family: Family) -> MLPActivation:
    gated = family.switches.get("gated", True)
    known: Mapping[str, MLPActivation] = ACTIVATIONS if gated else UNGATED
    name = fields.text(family.activation, "silu")
    if name == "gelu" and family.model_type == "gemma":
        return "gelu_tanh"  # its first files say so, and mean the approximation
    if name == family.own_activation:
        return name
    if name not in known:
        supported = ", ".join(known)
        raise fields.error(family.activation, f"is {shown(name)}; supported are {supported}")
    return known[name]


def read_dtype(fields: Fields) -> DType:
    """Of the weights, as the file has it."""
    key = "dtype" if fields.has("dtype") else "torch_dtype"
    name = fields.text(key) if fields.has(key) else "float32"
    if name not in DTYPES:
        raise fields.error(key, f"is {shown(name)}; supported are {', '.join(DTYPES)}")
    return DTYPES[name]


def read_token(fields: Fields, name: str, vocab: int) -> int | None:
    """A token id, or None if the field is missing."""
    return fields.integer(name, 0, vocab - 1) if fields.has(name) else None


def read_tokens(fields: Fields, name: str, vocab: int) -> tuple[int, ...]:
    """Token ids given as one number or as a list; empty if the field is missing."""
    if not fields.has(name):
        return ()
    try:
        ids = fields.items(name, int)
    except ModelError:
        return (fields.integer(name, 0, vocab - 1),)
    if any(not 0 <= token < vocab for token in ids):
        raise fields.error(name, f"is {shown(ids)}; expected token ids below {vocab}")
    return tuple(ids)
