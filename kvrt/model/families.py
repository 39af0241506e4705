"""The families of decoders, as rows of facts: what an architecture's name says that its config.json
does not.

A family that needs nothing new is one row here, the names of its tensors in `kvrt.model.names`
where they are not Llama's, and one row of the tests.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvrt.model.jsonfile import Fields, shown
from kvrt.model.rotary import MAX_POSITIONS
from kvrt.model.spec import LayerSpec

MAX_LAYERS = 1 << 11
DEFAULT_WINDOW = 4096
"""Of Mistral and Qwen, where ``sliding_window`` is missing."""

ATTENTION_BIAS = "attention_bias"
LAYER_NORM = "layer_norm_eps"


def _plain_layers(fields: Fields, count: int) -> list[LayerSpec]:
    return [LayerSpec()] * count


def _no_scales(fields: Fields) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True)
class Family:
    """What is so in all models of a family.

    Args:
        model_type: its name where ``architectures`` names none.
        layers: reads the layers' windows and rotation.
        scales: reads the numbers of `ModelSpec` that end in scale or softcap.
        qkv_bias, o_bias, mlp_bias: whether there are such biases, or the field that says so.
        eps: the field that `norm_eps` is in.
        activation: the field that says it.
        theta: the default of ``rope_theta``.
        local_theta: the layers with a window have a rotation of their own, of this base.
        partial: the default of ``partial_rotary_factor``; None: whole heads are rotated.
        defaults: of other fields, where the file does not have them.
        refused: fields with values other than these say what is not supported.
        switches: what else of `ModelSpec` is the same in all of them.
    """

    model_type: str
    layers: Callable[[Fields, int], list[LayerSpec]] = _plain_layers
    scales: Callable[[Fields], dict[str, Any]] = _no_scales
    qkv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    eps: str = "rms_norm_eps"
    activation: str = "hidden_act"
    theta: float = 10_000.0
    local_theta: float | None = None
    partial: float | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, Any] = field(default_factory=dict)
    switches: Mapping[str, Any] = field(default_factory=dict)


# --- windows and rotation of layers --------------------------------------------------------------


def _window(fields: Fields, default: int) -> int:
    """The window: `default` where the field is missing, none (0) where it is null."""
    if "sliding_window" not in fields:
        return default
    return fields.integer("sliding_window", 1, MAX_POSITIONS) if fields.has("sliding_window") else 0


def _switched_window(fields: Fields, default: int) -> int:
    """The window, where a field of its own turns windows on."""
    return _window(fields, default) if fields.flag("use_sliding_window", False) else 0


def _windowed_layers(fields: Fields, count: int) -> list[LayerSpec]:
    return [LayerSpec(window=_window(fields, 0))] * count


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


def mixed_layers(
    interval: int, layers: int, window: int, local: int = 0, whole: int | None = 0
) -> list[LayerSpec]:
    """Layers with a window, of which every so many, one sees all.

    Args:
        local: which rotation those with a window have.
        whole: which the others have.
    """
    return [
        LayerSpec(window, local) if (layer + 1) % interval else LayerSpec(0, whole)
        for layer in range(layers)
    ]


def _mixed(interval: int, local: int = 0, whole: int | None = 0) -> Any:
    """Reads layers of which every so many, one sees all; see `mixed_layers`."""

    def layers(fields: Fields, count: int) -> list[LayerSpec]:
        window = _window(fields, DEFAULT_WINDOW)
        windows = _typed_windows(fields, count, window)
        if windows is None:
            pattern = fields.integer("sliding_window_pattern", 1, MAX_LAYERS, interval)
            return mixed_layers(pattern, count, window, local, whole)
        return [LayerSpec(w, local) if w else LayerSpec(0, whole) for w in windows]

    return layers


def _exaone_layers(fields: Fields, count: int) -> list[LayerSpec]:
    window = _window(fields, DEFAULT_WINDOW)
    if not window:
        return [LayerSpec()] * count
    windows = _typed_windows(fields, count, window)
    if windows is None:
        if fields.has("sliding_window_pattern") and fields.holds_text("sliding_window_pattern"):
            raise fields.error("sliding_window_pattern", "in letters needs layer_types beside it")
        pattern = fields.integer("sliding_window_pattern", 1, MAX_LAYERS, 4)
        return mixed_layers(pattern, count, window, 0, None)
    return [LayerSpec(w, 0 if w else None) for w in windows]


# --- scales --------------------------------------------------------------------------------------


def _number(fields: Fields, name: str, default: float) -> float:
    """A scale: any positive number."""
    return fields.number(name, 1e-6, 1e6, default)


def _softcap(fields: Fields, name: str, default: float) -> float:
    """0 where the field is null."""
    return _number(fields, name, default) if name not in fields or fields.has(name) else 0.0


def gemma_scale(hidden: int) -> float:
    """What Gemma's embedding is multiplied by."""
    return float(hidden**0.5)


def _gemma_scales(fields: Fields) -> dict[str, Any]:
    return {"embedding_scale": gemma_scale(fields.integer("hidden_size", 1, 1 << 20))}


def _gemma3_scales(fields: Fields) -> dict[str, Any]:
    caps = {
        f"{ours}_softcap": fields.number(theirs, 1e-6, 1e6)
        for ours, theirs in (
            ("attention", "attn_logit_softcapping"),
            ("logit", "final_logit_softcapping"),
        )
        if fields.has(theirs)
    }
    scale = _number(fields, "query_pre_attn_scalar", 256.0) ** -0.5
    return _gemma_scales(fields) | caps | {"attention_scale": scale}


def _granite_scales(fields: Fields) -> dict[str, Any]:
    return {
        "embedding_scale": _number(fields, "embedding_multiplier", 1.0),
        "attention_scale": _number(fields, "attention_multiplier", 1.0),
        "residual_scale": _number(fields, "residual_multiplier", 1.0),
        "logit_scale": 1.0 / _number(fields, "logits_scaling", 1.0),
    }


def _cohere_scales(fields: Fields) -> dict[str, Any]:
    return {"logit_scale": _number(fields, "logit_scale", 0.0625)}


# --- the families --------------------------------------------------------------------------------

_GEMMA = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
_GEMMA3 = _GEMMA | {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131_072,
}

FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(
        "llama", qkv_bias=ATTENTION_BIAS, o_bias=ATTENTION_BIAS, mlp_bias="mlp_bias"
    ),
    "MistralForCausalLM": Family(
        "mistral",
        _windowed_layers,
        defaults={"num_key_value_heads": 8, "sliding_window": DEFAULT_WINDOW},
    ),
    "Qwen2ForCausalLM": Family(
        "qwen2", _qwen_layers, qkv_bias=True, defaults={"num_key_value_heads": 32}
    ),
    "Qwen3ForCausalLM": Family(
        "qwen3",
        _qwen_layers,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        defaults={"num_key_value_heads": 32, "head_dim": 128},
        switches={"qk_norm": "heads"},
    ),
    "SmolLM3ForCausalLM": Family(
        "smollm3",
        _smollm3_layers,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        mlp_bias="mlp_bias",
        theta=2_000_000.0,
        defaults={"num_key_value_heads": 4, "tie_word_embeddings": True},
    ),
    "GemmaForCausalLM": Family(
        "gemma",
        scales=_gemma_scales,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        defaults={**_GEMMA, "hidden_act": "gelu_pytorch_tanh"},
        switches={"naming": "gemma"},
    ),
    "Gemma2ForCausalLM": Family(
        "gemma2",
        _mixed(2),
        _gemma3_scales,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        activation="hidden_activation",
        defaults=_GEMMA
        | {
            "num_key_value_heads": 4,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        switches={"naming": "gemma2"},
    ),
    "Gemma3ForCausalLM": Family(
        "gemma3_text",
        _mixed(6, local=1),
        _gemma3_scales,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        activation="hidden_activation",
        theta=1_000_000.0,
        local_theta=10_000.0,
        defaults=_GEMMA3,
        refused={"use_bidirectional_attention": False},
        switches={"naming": "gemma2", "qk_norm": "heads"},
    ),
    "GraniteForCausalLM": Family(
        "granite",
        scales=_granite_scales,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        mlp_bias="mlp_bias",
    ),
    "Phi3ForCausalLM": Family("phi3", _windowed_layers, partial=1.0, switches={"naming": "phi3"}),
    "Olmo2ForCausalLM": Family(
        "olmo2",
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        switches={"naming": "olmo2", "qk_norm": "whole"},
    ),
    "Olmo3ForCausalLM": Family(
        "olmo3",
        _mixed(4, local=1),
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        theta=500_000.0,
        local_theta=500_000.0,
        switches={"naming": "olmo2", "qk_norm": "whole"},
    ),
    "Glm4ForCausalLM": Family(
        "glm4",
        qkv_bias=ATTENTION_BIAS,
        partial=0.5,
        defaults={"num_key_value_heads": 2, "head_dim": 128, ATTENTION_BIAS: True},
        switches={"naming": "glm4"},
    ),
    "CohereForCausalLM": Family(
        "cohere",
        scales=_cohere_scales,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        eps=LAYER_NORM,
        theta=500_000.0,
        defaults={LAYER_NORM: 1e-5, "tie_word_embeddings": True},
        refused={"use_qk_norm": False},
        switches={"naming": "cohere", "norm": "layer", "parallel": True},
    ),
    "Cohere2ForCausalLM": Family(
        "cohere2",
        _mixed(4, whole=None),
        _cohere_scales,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        eps=LAYER_NORM,
        defaults={LAYER_NORM: 1e-5, "tie_word_embeddings": True},
        switches={"naming": "cohere", "norm": "layer", "parallel": True},
    ),
    "Exaone4ForCausalLM": Family(
        "exaone4",
        _exaone_layers,
        defaults={"num_key_value_heads": 32},
        switches={"naming": "olmo2", "qk_norm": "heads"},
    ),
    "SeedOssForCausalLM": Family(
        "seed_oss",
        qkv_bias=ATTENTION_BIAS,
        o_bias="attention_out_bias",
        mlp_bias="mlp_bias",
        defaults={"num_key_value_heads": 8, "head_dim": 128, ATTENTION_BIAS: True},
        switches={"naming": "seed_oss"},
    ),
    "Ernie4_5ForCausalLM": Family(
        "ernie4_5",
        qkv_bias="use_bias",
        o_bias="use_bias",
        mlp_bias="use_bias",
        theta=500_000.0,
        defaults={"num_key_value_heads": 2, "head_dim": 128, "tie_word_embeddings": True},
        switches={"naming": "paired"},
    ),
    "ArceeForCausalLM": Family(
        "arcee",
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        mlp_bias="mlp_bias",
        defaults={"hidden_act": "relu2"},
        switches={"naming": "arcee", "gated": False},
    ),
    "NemotronForCausalLM": Family(
        "nemotron",
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        mlp_bias="mlp_bias",
        eps="norm_eps",
        partial=0.5,
        defaults={"hidden_act": "relu2", "norm_eps": 1e-5},
        switches={"naming": "nemotron", "norm": "layer", "norm_bias": True, "gated": False},
    ),
    "Starcoder2ForCausalLM": Family(
        "starcoder2",
        _windowed_layers,
        qkv_bias="use_bias",
        o_bias="use_bias",
        mlp_bias="use_bias",
        eps="norm_epsilon",
        defaults={
            "num_key_value_heads": 2,
            "hidden_act": "gelu_pytorch_tanh",
            "norm_epsilon": 1e-5,
            "use_bias": True,
            "tie_word_embeddings": True,
        },
        switches={"naming": "starcoder2", "norm": "layer", "norm_bias": True, "gated": False},
    ),
    "StableLmForCausalLM": Family(
        "stablelm",
        qkv_bias="use_qkv_bias",
        eps=LAYER_NORM,
        partial=0.25,
        defaults={"num_key_value_heads": 32, LAYER_NORM: 1e-5},
        refused={"qk_layernorm": False, "use_parallel_residual": False},
        switches={"norm": "layer", "norm_bias": True},
    ),
}

NESTED: Mapping[str, str] = {"Gemma3ForConditionalGeneration": "Gemma3ForCausalLM"}
"""Models of text and images, whose ``text_config`` is a decoder that is read alone."""
