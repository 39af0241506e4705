"""From a Hugging Face config.json to a `ModelSpec`, with every field checked before it is used.

The families differ in a few facts, which are the rows of `FAMILIES`; everything else is read from
the file. A field that is missing has the default of the family's class in transformers; null means
what it means there, and is refused where it means nothing.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from kvrt.errors import ModelError
from kvrt.model.jsonfile import Fields, read_object, shown
from kvrt.model.rotary import MAX_POSITIONS, read_rope
from kvrt.model.spec import LayerSpec, ModelSpec
from kvrt.spi import Activation, DType

# Upper limits, about ten times the largest published model: beyond them a value is damage, and
# would be found only when its memory is asked for.
MAX_VOCAB = 1 << 24
MAX_WIDTH = 1 << 20
MAX_LAYERS = 1 << 11
MAX_HEADS = 1 << 12
MAX_HEAD_DIM = 1 << 11

DEFAULT_WINDOW = 4096
"""Of Mistral and Qwen, where ``sliding_window`` is missing."""

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
        model_type: its name where ``architectures`` names none.
        qkv_bias, o_bias: True, False, or None where ``attention_bias`` decides.
        mlp_bias: None where ``mlp_bias`` decides.
        qk_norm: query and key heads are normed.
        head_dim: the default; None is hidden_size / num_attention_heads.
        kv_heads: the default; None is num_attention_heads, which null always is.
        tied: the default of ``tie_word_embeddings``.
        theta: the default of ``rope_theta``.
    """

    layers: Callable[[Fields, int], list[LayerSpec]]
    model_type: str
    qkv_bias: bool | None = None
    o_bias: bool | None = None
    mlp_bias: bool | None = False
    qk_norm: bool = False
    head_dim: int | None = None
    kv_heads: int | None = None
    tied: bool = False
    theta: float = 10_000.0


def _plain_layers(fields: Fields, count: int) -> list[LayerSpec]:
    return [LayerSpec()] * count


def _window(fields: Fields, default: int) -> int:
    """The window: `default` where the field is missing, none (0) where it is null."""
    if "sliding_window" not in fields:
        return default
    return fields.integer("sliding_window", 1, MAX_POSITIONS) if fields.has("sliding_window") else 0


def _switched_window(fields: Fields, default: int) -> int:
    """The window, where a field of its own turns windows on."""
    return _window(fields, default) if fields.flag("use_sliding_window", False) else 0


def _mistral_layers(fields: Fields, count: int) -> list[LayerSpec]:
    return [LayerSpec(window=_window(fields, DEFAULT_WINDOW))] * count


def _typed_windows(fields: Fields, count: int, window: int) -> list[int] | None:
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
    if "sliding_attention" in types and not window:
        raise fields.error("layer_types", "has sliding_attention, but no sliding_window is in use")
    return [window if kind == "sliding_attention" else 0 for kind in types]


def _qwen_layers(fields: Fields, count: int) -> list[LayerSpec]:
    window = _switched_window(fields, DEFAULT_WINDOW)
    first = fields.integer("max_window_layers", 0, MAX_LAYERS, 28)
    windows = _typed_windows(fields, count, window)
    if windows is None:
        windows = [window if layer >= first else 0 for layer in range(count)]
    return [LayerSpec(window=window) for window in windows]


def _smollm3_layers(fields: Fields, count: int) -> list[LayerSpec]:
    interval = fields.integer("no_rope_layer_interval", 1, MAX_LAYERS, 4)
    if fields.has("no_rope_layers"):
        # Despite its name, a 1 in the list means that the layer is rotated.
        rotated = fields.items("no_rope_layers", int)
        if len(rotated) < count or not set(rotated) <= {0, 1}:
            raise fields.error("no_rope_layers", f"should be {count} zeros and ones")
    else:
        rotated = [int((layer + 1) % interval != 0) for layer in range(count)]
    window = _switched_window(fields, 0)
    windows = _typed_windows(fields, count, window)
    if windows is None:
        windows = [0 if rotated[layer] else window for layer in range(count)]
    return [LayerSpec(windows[layer], rope=0 if rotated[layer] else None) for layer in range(count)]


FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(_plain_layers, "llama", mlp_bias=None),
    "MistralForCausalLM": Family(
        _mistral_layers, "mistral", qkv_bias=False, o_bias=False, kv_heads=8
    ),
    "Qwen2ForCausalLM": Family(_qwen_layers, "qwen2", qkv_bias=True, o_bias=False, kv_heads=32),
    "Qwen3ForCausalLM": Family(_qwen_layers, "qwen3", qk_norm=True, head_dim=128, kv_heads=32),
    "SmolLM3ForCausalLM": Family(
        _smollm3_layers, "smollm3", mlp_bias=None, kv_heads=4, tied=True, theta=2_000_000.0
    ),
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
    vocab = fields.integer("vocab_size", 1, MAX_VOCAB)
    hidden = fields.integer("hidden_size", 1, MAX_WIDTH)
    heads = fields.integer("num_attention_heads", 1, MAX_HEADS)
    kv_heads = _kv_heads(fields, family, heads)
    if heads % kv_heads:
        raise fields.error(
            "num_key_value_heads", f"is {kv_heads}, which does not divide {heads} query heads"
        )
    layers = family.layers(fields, fields.integer("num_hidden_layers", 1, MAX_LAYERS))
    max_positions = fields.integer("max_position_embeddings", 1, MAX_POSITIONS)
    head_dim = _head_dim(fields, family, hidden, heads)
    rope = read_rope(fields, family.theta, head_dim, max_positions)
    by_field = None in (family.qkv_bias, family.o_bias)
    attention_bias = by_field and fields.flag("attention_bias", False)
    return ModelSpec(
        architecture=architecture,
        vocab=vocab,
        hidden=hidden,
        intermediate=fields.integer("intermediate_size", 1, MAX_WIDTH),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        layers=tuple(layers),
        max_positions=min(max(max_positions, rope.stretched_positions), MAX_POSITIONS),
        norm_eps=fields.number("rms_norm_eps", 0.0, 1.0),
        activation=_activation(fields),
        ropes=(rope,),
        tied=fields.flag("tie_word_embeddings", family.tied),
        qkv_bias=attention_bias if family.qkv_bias is None else family.qkv_bias,
        o_bias=attention_bias if family.o_bias is None else family.o_bias,
        mlp_bias=fields.flag("mlp_bias", False) if family.mlp_bias is None else family.mlp_bias,
        qk_norm="heads" if family.qk_norm else "none",
        bos=read_token(fields, "bos_token_id", vocab),
        eos=read_tokens(fields, "eos_token_id", vocab),
        dtype=_dtype(fields),
    )


def _architecture(fields: Fields) -> str:
    if fields.has("architectures") or not fields.has("model_type"):
        names = fields.items("architectures", str)
    else:
        kind = fields.text("model_type")
        names = [name for name, family in FAMILIES.items() if family.model_type == kind] or [kind]
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


def _kv_heads(fields: Fields, family: Family, heads: int) -> int:
    if "num_key_value_heads" in fields and not fields.has("num_key_value_heads"):
        return heads
    return fields.integer("num_key_value_heads", 1, MAX_HEADS, family.kv_heads or heads)


def _head_dim(fields: Fields, family: Family, hidden: int, heads: int) -> int:
    if fields.has("head_dim") or family.head_dim:  # null stands for the quotient, but in Qwen 3
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
