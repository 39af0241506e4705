"""From a Hugging Face config.json to a `ModelSpec`, with every field checked before it is used.

The families differ in a few facts, which are the rows of `FAMILIES`; everything else is read from
the file. Both spellings of the rotary embedding are understood: ``rope_theta`` with
``rope_scaling``, and the ``rope_parameters`` of transformers 5.
"""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from kvrt.errors import ModelError
from kvrt.model.jsonfile import Fields, read_object, shown
from kvrt.model.spec import LayerSpec, ModelSpec, RopeKind, RopeSpec
from kvrt.spi import Activation, DType

# Upper limits, about ten times the largest published model: beyond them a value is damage, and
# would be found only when its memory is asked for.
MAX_VOCAB = 1 << 24
MAX_WIDTH = 1 << 20
MAX_LAYERS = 1 << 11
MAX_HEADS = 1 << 12
MAX_HEAD_DIM = 1 << 11
MAX_POSITIONS = 1 << 28

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
DTYPES: Mapping[str, DType] = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
}


@dataclass(frozen=True, slots=True)
class Family:
    """What an architecture's name says that its config.json does not.

    Args:
        layers: reads the layers' windows and rotation.
        qkv_bias, o_bias: True, False, or None where ``attention_bias`` decides.
        mlp_bias: None where ``mlp_bias`` decides.
        qk_norm: query and key heads are normed.
        head_dim: the default; None is hidden_size / num_attention_heads.
        tied: the default of ``tie_word_embeddings``.
        theta: the default of ``rope_theta``.
    """

    layers: Callable[[Fields, int], list[LayerSpec]]
    qkv_bias: bool | None = None
    o_bias: bool | None = None
    mlp_bias: bool | None = False
    qk_norm: bool = False
    head_dim: int | None = None
    tied: bool = False
    theta: float = 10_000.0


def _plain_layers(fields: Fields, count: int) -> list[LayerSpec]:
    return [LayerSpec()] * count


def _window(fields: Fields) -> int:
    if not fields.has("sliding_window"):
        return 0
    return fields.integer("sliding_window", 1, MAX_POSITIONS)


def _mistral_layers(fields: Fields, count: int) -> list[LayerSpec]:
    return [LayerSpec(window=_window(fields))] * count


def _typed_windows(fields: Fields, count: int) -> list[int] | None:
    """Windows as ``layer_types`` gives them, or None if it is missing."""
    if not fields.has("layer_types"):
        return None
    types = fields.items("layer_types", str)
    if len(types) != count:
        raise fields.error("layer_types", f"has {len(types)} entries for {count} layers")
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise fields.error(
                "layer_types",
                f"names {shown(kind)}; supported are full_attention and sliding_attention",
            )
    window = _window(fields) if fields.flag("use_sliding_window", False) else 0
    if "sliding_attention" in types and not window:
        raise fields.error("layer_types", "has sliding_attention, but no sliding_window is in use")
    return [window if kind == "sliding_attention" else 0 for kind in types]


def _qwen_layers(fields: Fields, count: int) -> list[LayerSpec]:
    windows = _typed_windows(fields, count)
    if windows is None:
        window = _window(fields) if fields.flag("use_sliding_window", False) else 0
        first = fields.integer("max_window_layers", 0, MAX_LAYERS, 28)
        windows = [window if layer >= first else 0 for layer in range(count)]
    return [LayerSpec(window=window) for window in windows]


def _smollm3_layers(fields: Fields, count: int) -> list[LayerSpec]:
    if fields.has("no_rope_layers"):
        # Despite its name, a 1 in the list means that the layer is rotated.
        rotated = fields.items("no_rope_layers", int)
        if len(rotated) < count or not set(rotated) <= {0, 1}:
            raise fields.error("no_rope_layers", f"should be {count} zeros and ones")
    else:
        interval = fields.integer("no_rope_layer_interval", 1, MAX_LAYERS, 4)
        rotated = [int((layer + 1) % interval != 0) for layer in range(count)]
    windows = _typed_windows(fields, count)
    if windows is None:
        window = _window(fields) if fields.flag("use_sliding_window", False) else 0
        windows = [0 if rotated[layer] else window for layer in range(count)]
    return [LayerSpec(windows[layer], rope=bool(rotated[layer])) for layer in range(count)]


FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(_plain_layers, mlp_bias=None),
    "MistralForCausalLM": Family(_mistral_layers, qkv_bias=False, o_bias=False),
    "Qwen2ForCausalLM": Family(_qwen_layers, qkv_bias=True, o_bias=False),
    "Qwen3ForCausalLM": Family(_qwen_layers, qk_norm=True, head_dim=128),
    "SmolLM3ForCausalLM": Family(_smollm3_layers, mlp_bias=None, tied=True, theta=2_000_000.0),
}


def read_config(path: Path) -> ModelSpec:
    """The model that a config.json describes.

    Args:
        path: the file.

    Raises:
        ModelError: the file is missing or damaged, the architecture is not supported (the message
            lists those that are), or a field is missing or out of range (the message names it).
    """
    fields = Fields(str(path), read_object(path))
    architecture = _architecture(fields)
    family = FAMILIES[architecture]
    if fields.has("quantization_config"):
        raise fields.error(
            "quantization_config",
            "says that the weights are quantised, which is not supported",
            fix="use the model's float32, bfloat16 or float16 checkpoint",
        )
    vocab = fields.integer("vocab_size", 1, MAX_VOCAB)
    hidden = fields.integer("hidden_size", 1, MAX_WIDTH)
    heads = fields.integer("num_attention_heads", 1, MAX_HEADS)
    kv_heads = fields.integer("num_key_value_heads", 1, MAX_HEADS, heads)
    if heads % kv_heads:
        raise fields.error(
            "num_key_value_heads", f"is {kv_heads}, which does not divide {heads} query heads"
        )
    layers = family.layers(fields, fields.integer("num_hidden_layers", 1, MAX_LAYERS))
    max_positions = fields.integer("max_position_embeddings", 1, MAX_POSITIONS)
    rope = _rope(fields, family, max_positions)
    if rope.kind == "yarn":
        # The field keeps the length of training; the stretched context is what the model serves.
        stretched = int(rope.factor * rope.original_positions)
        max_positions = min(max(max_positions, stretched), MAX_POSITIONS)
    attention_bias = fields.flag("attention_bias", False)
    return ModelSpec(
        architecture=architecture,
        vocab=vocab,
        hidden=hidden,
        intermediate=fields.integer("intermediate_size", 1, MAX_WIDTH),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_head_dim(fields, family, hidden, heads),
        layers=tuple(layers),
        max_positions=max_positions,
        norm_eps=fields.number("rms_norm_eps", 0.0, 1.0),
        activation=_activation(fields),
        rope=rope,
        tied=fields.flag("tie_word_embeddings", family.tied),
        qkv_bias=attention_bias if family.qkv_bias is None else family.qkv_bias,
        o_bias=attention_bias if family.o_bias is None else family.o_bias,
        mlp_bias=fields.flag("mlp_bias", False) if family.mlp_bias is None else family.mlp_bias,
        qk_norm=family.qk_norm,
        bos=read_token(fields, "bos_token_id", vocab),
        eos=read_tokens(fields, "eos_token_id", vocab),
        dtype=_dtype(fields),
    )


def _architecture(fields: Fields) -> str:
    names = fields.items("architectures", str)
    for name in names:
        if name in FAMILIES:
            return cast(str, name)
    wanted = ", ".join(names) or "nothing"
    near = difflib.get_close_matches(wanted, FAMILIES, n=1)
    raise fields.error(
        "architectures",
        f"names {shown(wanted)}, which is not supported; supported are " + ", ".join(FAMILIES),
        fix=f"the nearest supported architecture is {near[0]}" if near else "",
    )


def _head_dim(fields: Fields, family: Family, hidden: int, heads: int) -> int:
    if fields.has("head_dim") or family.head_dim:
        head_dim = fields.integer("head_dim", 1, MAX_HEAD_DIM, family.head_dim)
        if head_dim % 2:
            raise fields.error("head_dim", f"is {head_dim}, but rotation needs an even number")
        return head_dim
    if hidden % (2 * heads) or hidden // heads > MAX_HEAD_DIM:
        raise fields.error(
            "num_attention_heads", f"is {heads}, which does not split hidden_size {hidden} evenly"
        )
    return hidden // heads


def _activation(fields: Fields) -> Activation:
    name = fields.text("hidden_act", "silu")
    if name not in ACTIVATIONS:
        supported = ", ".join(ACTIVATIONS)
        raise fields.error("hidden_act", f"is {shown(name)}; supported are {supported}")
    return ACTIVATIONS[name]


def _dtype(fields: Fields) -> DType:
    key = "dtype" if fields.has("dtype") else "torch_dtype"
    name = fields.text(key, "float32")
    if name not in DTYPES:
        raise fields.error(key, f"is {shown(name)}; supported are {', '.join(DTYPES)}")
    return DTYPES[name]


def _rope(fields: Fields, family: Family, max_positions: int) -> RopeSpec:
    """The rotary embedding, from either spelling; what is not known is refused by name."""
    scaling: Fields | None = None
    for name in ("rope_parameters", "rope_scaling"):
        if scaling is None and fields.has(name):
            scaling = fields.section(name)
    if scaling is not None and scaling.has("rope_theta"):
        theta = scaling.number("rope_theta", 1.0, 1e15)
    else:
        theta = fields.number("rope_theta", 1.0, 1e15, family.theta)
    for place in (fields, scaling):
        if place is not None and place.number("partial_rotary_factor", 0.0, 1.0, 1.0) != 1.0:
            raise place.error("partial_rotary_factor", "other than 1 is not supported")
    if scaling is None:
        return RopeSpec(theta)
    key = "rope_type" if scaling.has("rope_type") else "type"
    kind = scaling.text(key, "default")
    if kind == "default":
        return RopeSpec(theta)
    if kind not in ("linear", "llama3", "yarn"):
        raise scaling.error(
            key, f"is {shown(kind)}; supported are default, linear, llama3 and yarn"
        )
    factor = scaling.number("factor", 1.0, 1e6)
    if kind == "linear":
        return RopeSpec(theta, "linear", factor)
    rope = RopeSpec(
        theta,
        cast(RopeKind, kind),
        factor,
        scaling.integer("original_max_position_embeddings", 1, MAX_POSITIONS, max_positions),
    )
    return _llama3(scaling, rope) if kind == "llama3" else _yarn(scaling, rope)


def _llama3(scaling: Fields, rope: RopeSpec) -> RopeSpec:
    low = scaling.number("low_freq_factor", 1e-6, 1e6)
    high = scaling.number("high_freq_factor", 1e-6, 1e6)
    if high <= low:
        raise scaling.error("high_freq_factor", f"is {high:g}; it must exceed low_freq_factor")
    return RopeSpec(
        rope.theta,
        "llama3",
        rope.factor,
        rope.original_positions,
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _yarn(scaling: Fields, rope: RopeSpec) -> RopeSpec:
    fast = scaling.number("beta_fast", 1e-6, 1e6, 32.0)
    slow = scaling.number("beta_slow", 1e-6, 1e6, 1.0)
    if fast <= slow:
        raise scaling.error("beta_fast", f"is {fast:g}; it must exceed beta_slow")
    if rope.theta <= 1.0:
        raise scaling.error("rope_theta", "must exceed 1 for yarn")
    for name in ("mscale", "mscale_all_dim"):
        if scaling.has(name):
            raise scaling.error(name, "is not supported")
    # Equation 22 of arXiv 2309.00071: logits are sharpened as the context is stretched.
    sharpened = 0.1 * math.log(rope.factor) + 1.0
    return RopeSpec(
        rope.theta,
        "yarn",
        rope.factor,
        rope.original_positions,
        beta_fast=fast,
        beta_slow=slow,
        attention_factor=scaling.number("attention_factor", 1e-6, 1e6, sharpened),
        truncate=scaling.flag("truncate", True),
    )


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
