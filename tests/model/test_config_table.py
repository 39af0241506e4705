"""Every field of config.json that is read, present, null and missing: as transformers reads it.

For each family, the file goes to transformers' own class and to `read_config`. What the class
cannot make a model of, we refuse by the field's name; of all else we make the same model.
"""

import copy
import itertools
import json
import math
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from kvrt.errors import ModelError
from kvrt.model.config import FAMILIES, read_config
from kvrt.model.decoder.rope import for_context, inverse_frequencies
from kvrt.model.spec import ModelSpec
from tests.model.checkpoints import BASE as SMALL
from tests.model.checkpoints import FAMILIES as FAMILY_ROWS

Config = dict[str, Any]
MODEL_TYPES = {family.model_type: name for name, family in FAMILIES.items()}
COMPARED = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Classes that have no fields but these. What models of the others compute, `test_families` has."""

LAYERS, HEADS, LENGTH = 6, 32, 4096
LOOK = 12
TINY: Config = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 8,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BASE: Config = {
    "vocab_size": 150_000,
    "hidden_size": 1024,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
    "rms_norm_eps": 1e-5,
}
REQUIRED = {*BASE} - {"num_key_value_heads"}
"""Sizes that the classes have defaults for. A file without them is damaged, so it is refused."""

ROUNDED = ("frequencies", "sharpened")
MIXED = ["sliding_attention", "full_attention"] * (LAYERS // 2)
VALUES: dict[str, list[Any]] = {
    "vocab_size": [1000],
    "hidden_size": [2048],
    "intermediate_size": [96],
    "num_hidden_layers": [6],
    "num_attention_heads": [16],
    "num_key_value_heads": [1, HEADS],
    "head_dim": [16, 64],
    "max_position_embeddings": [77],
    "rms_norm_eps": [1e-6],
    "hidden_act": ["silu", "gelu_pytorch_tanh"],
    "tie_word_embeddings": [True, False],
    "attention_bias": [True, False],
    "mlp_bias": [True, False],
    "use_sliding_window": [True, False],
    "sliding_window": [7],
    "max_window_layers": [0, 3],
    "layer_types": [["full_attention"] * LAYERS, MIXED],
    "no_rope_layers": [[1, 0] * (LAYERS // 2)],
    "no_rope_layer_interval": [2],
    "bos_token_id": [3],
    "eos_token_id": [3, [3, 4]],
    "pad_token_id": [5, 10**9],
    "rope_theta": [5e5],
    "rope_scaling": [{}, {"type": "linear", "factor": 2}],
    "rope_parameters": [{}, {"rope_type": "linear", "factor": 3.0}],
    "partial_rotary_factor": [1.0],
    "original_max_position_embeddings": [1024],
}
SWITCHED = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
WINDOWED = {"mistral": SWITCHED[:1], "qwen2": SWITCHED, "qwen3": SWITCHED, "smollm3": SWITCHED}
"""The fields that the windows of a class come from."""

BESIDE: list[Config] = [
    {"use_sliding_window": True, "max_window_layers": 2},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "no_rope_layers": [1] * LAYERS},
]
"""Each field is tried with these others, so that it has something to act on."""

SECTION = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
IN_SECTION: dict[str, list[Any]] = {
    "rope_type": ["default", "linear", "dynamic", "llama3", "yarn"],
    "type": ["default", "linear", "dynamic", "yarn"],
    "rope_theta": [5e5],
    "factor": [1.0, 2, 8.0],
    "original_max_position_embeddings": [512],
    "low_freq_factor": [2.0],
    "high_freq_factor": [8.0],
    "attention_factor": [1.25],
    "beta_fast": [16],
    "beta_slow": [2.0],
    "mscale": [0.7],
    "mscale_all_dim": [0.9],
    "truncate": [True, False],
    "partial_rotary_factor": [1.0],
}

LOOSER = {
    # The class would read null as the others do; only its check of types before that refuses it.
    ("mistral", "num_key_value_heads", "null"),
    # Classes that have no such field refuse null only together with some kinds of rotation.
    ("qwen2", "head_dim", "null"),
    ("smollm3", "head_dim", "null"),
}
STRICTER = {
    # Null would be "false" here, where a missing field is "true": nobody can have meant that.
    ("llama", "truncate", "null"),
    # The default rotation never looks at it, the others fail.
    ("llama", "partial_rotary_factor", "null"),
}


def states(name: str, values: list[Any], config: Config) -> Iterator[tuple[str, Config]]:
    for value in values:
        yield f"{value}", config | {name: value}
    yield "null", config | {name: None}
    yield "missing", {key: value for key, value in config.items() if key != name}


def theirs(model_type: str, content: Config) -> Config:
    """What the class makes of it, in words of our own; any exception means that it cannot."""
    config = CONFIG_MAPPING[model_type].from_dict(copy.deepcopy(content))
    windows = [0] * LAYERS
    if model_type == "mistral":
        windows = [config.sliding_window or 0] * LAYERS
    elif model_type != "llama":
        types = config.layer_types
        windows = [int(config.sliding_window) if "sliding" in kind else 0 for kind in types]
    rotated = config.no_rope_layers if model_type == "smollm3" else [True] * LAYERS
    biased = model_type not in ("mistral", "qwen2") and config.attention_bias
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    if rope["rope_type"] == "default":
        exponents = torch.arange(0, head_dim, 2).float() / head_dim
        frequencies, sharpened = 1.0 / rope["rope_theta"] ** exponents, 1.0
    else:
        frequencies, sharpened = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu")
    return {
        "vocab": config.vocab_size,
        "hidden": config.hidden_size,
        "intermediate": config.intermediate_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": head_dim,
        "norm_eps": config.rms_norm_eps,
        "activation": {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}[config.hidden_act],
        "tied": config.tie_word_embeddings,
        "qkv_bias": biased or model_type == "qwen2",
        "o_bias": biased,
        "mlp_bias": model_type in ("llama", "smollm3") and config.mlp_bias,
        "windows": windows,
        "rotated": [bool(one) for one in rotated],
        "frequencies": frequencies.tolist(),
        "sharpened": sharpened,
        "bos": config.bos_token_id,
        "eos": config.eos_token_id,
    }


def ours(spec: ModelSpec) -> Config:
    fields = ("vocab", "hidden", "intermediate", "heads", "kv_heads", "head_dim", "norm_eps",
              "activation", "tied", "qkv_bias", "o_bias", "mlp_bias", "bos")  # fmt: skip
    return {name: getattr(spec, name) for name in fields} | {
        "windows": [layer.window for layer in spec.layers],
        "rotated": [layer.rope is not None for layer in spec.layers],
        "frequencies": inverse_frequencies(spec.rope, spec.head_dim).tolist(),
        "sharpened": spec.rope.attention_factor,
        "eos": list(spec.eos) if len(spec.eos) > 1 else (*spec.eos, None)[0],
    }


def compare(folder: Path, model_type: str, name: str, state: str, content: Config) -> str:
    """Empty, or what differs."""
    path = folder / "config.json"
    path.write_text(json.dumps(content | {"architectures": [MODEL_TYPES[model_type]]}))
    try:
        want: Config | None = theirs(model_type, content)
    except Exception:  # the class's own checks, arithmetic with None, or a missing key
        want = None
    if state == "missing" and name in REQUIRED:
        want = None
    cell = model_type, name, state
    try:
        got = ours(read_config(path))
    except ModelError as error:
        fits = (want is None or cell in STRICTER) and name in str(error)
        return "" if fits else f"refused: {error}"
    if want is None:
        return "" if cell in LOOSER else f"accepted as {got}"
    for key in ("bos", "eos"):
        # A class's default is the id of one tokenizer, and nothing of this model has named it.
        if content.get(f"{key}_token_id") is None:
            want[key] = None
    return next(
        (
            f"{key} is {got[key]} in place of {value}"
            for key, value in want.items()
            if got[key] != (pytest.approx(value, rel=1e-6) if key in ROUNDED else value)
        ),
        "",
    )


WIDE = {"hidden_size": 1024, "num_attention_heads": 32}
"""Some class's default is 32 heads."""

OTHERS = {name: row for name, row in FAMILY_ROWS.items() if row["model_type"] not in COMPARED}
NEEDED = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
          "num_attention_heads", "max_position_embeddings", "n_embd", "n_layer",
          "n_head", "linear_num_key_heads", "linear_num_value_heads", "model_max_length",
          "hidden_size_per_layer_input", "attn_layer_indices", "layers_block_type"}  # fmt: skip
"""Sizes that no file lacks which is whole; so are the norms' epsilons, and which layers attend."""


EXPERTS = {
    "gemma4_text": {"num_experts", "top_k_experts", "moe_intermediate_size"},  # without defaults
    "kimi_linear": {"num_experts_per_tok", "num_experts_per_token"},  # 8, and there are 6
}


def in_both(model: Any) -> Config:
    """What a spec and a configuration of transformers both say, in words of the latter."""
    latent = None
    if isinstance(model, ModelSpec):
        if of := model.latent:
            latent = of.rank, of.query_rank, of.plain, of.rotated, of.value
        softcaps = model.attention_softcap, model.logit_softcap
        windows = [layer.window for layer in model.layers]
        found = (model.kv_heads, model.head_dim, model.norm_eps, model.tied, softcaps, windows)
    else:
        model.allow_global_per_layer_attribute_access = True
        windows = [getattr(model, "sliding_window", None) or 0] * model.num_hidden_layers
        if kinds := getattr(model, "layer_types", None):
            windows = [model.sliding_window if "sliding" in kind else 0 for kind in kinds]
        caps = [getattr(model, f"{of}_logit_softcapping", 0) or 0 for of in ("attn", "final")]
        width = model.hidden_size // model.num_attention_heads
        if hasattr(model, "kv_lora_rank"):
            plain, rotated = model.qk_nope_head_dim, model.qk_rope_head_dim
            latent = model.kv_lora_rank, model.q_lora_rank or 0, plain, rotated, model.v_head_dim
        eps = ("layer_norm_epsilon", "rms_norm_eps", "layer_norm_eps", "norm_epsilon", "norm_eps")
        found = (
            getattr(model, "num_key_value_heads", None) or model.num_attention_heads,
            getattr(model, "head_dim", None) or width,
            next(getattr(model, name) for name in eps if hasattr(model, name)),
            model.tie_word_embeddings,
            tuple(caps),
            windows,
        )
    if latent:  # which says what pages keep, instead of heads
        found = (*latent[:1], latent[1:], *found[2:])
    return dict(zip(("kv heads", "head", "eps", "tied", "caps", "windows"), found, strict=True))


@pytest.mark.parametrize("family", OTHERS)
def test_a_field_that_is_missing_has_the_default_of_the_class(tmp_path: Path, family: str) -> None:
    row, path = OTHERS[family], tmp_path / "config.json"
    model_type = row["model_type"]
    written = CONFIG_MAPPING[model_type](**{**SMALL, **row, **WIDE})
    content = {**written.to_dict(), "architectures": [MODEL_TYPES[model_type]]}
    needed = NEEDED if "gemma" in model_type else {*NEEDED, "rms_norm_eps"}
    needed |= EXPERTS.get(model_type, set())
    for name in content.keys() - {"architectures", "model_type", "layer_types", *needed}:
        left = {key: value for key, value in content.items() if key != name}
        path.write_text(json.dumps(left))
        try:
            made = CONFIG_MAPPING[model_type].from_dict(left)
        except Exception:  # the class's default does not fit the other sizes
            continue
        wanted = in_both(made)
        assert in_both(read_config(path)) == wanted, name


def window_configs(names: tuple[str, ...]) -> Iterator[Config]:
    """Every combination of these fields: missing, null, and with each value."""
    for chosen in itertools.product(*([..., None, *VALUES[name]] for name in names)):
        yield {name: v for name, v in zip(names, chosen, strict=True) if v is not ...}


def looked_back(config: PretrainedConfig) -> list[int]:
    """How many of `LOOK` tokens the last one looks at, in each layer of a model of transformers."""
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        given = model(torch.zeros(1, LOOK, dtype=torch.long), output_attentions=True).attentions
    return [int((layer[0, 0, -1] > 0).sum()) for layer in given]


def faults(folder: Path, model_type: str, cases: Iterator[tuple[str, str, Config]]) -> list[str]:
    return [
        f"{name} {state} in {content}: {fault}"
        for name, state, content in cases
        if (fault := compare(folder, model_type, name, state, content))
    ]


@pytest.mark.parametrize("model_type", COMPARED)
def test_every_field_present_null_and_missing_means_what_it_means_to_transformers(
    tmp_path: Path, model_type: str
) -> None:
    cases = (
        (name, state, content)
        for (name, values), beside in itertools.product(VALUES.items(), BESIDE)
        for state, content in states(name, values, BASE | beside)
    )
    assert faults(tmp_path, model_type, cases) == []


@pytest.mark.parametrize("model_type", WINDOWED)
def test_windows_are_those_that_the_layers_of_transformers_look_back_by(
    tmp_path: Path, model_type: str
) -> None:
    path = tmp_path / "config.json"
    seen: dict[str, list[int]] = {}
    for fields in window_configs(WINDOWED[model_type]):
        content = BASE | TINY | fields
        path.write_text(json.dumps(content | {"architectures": [MODEL_TYPES[model_type]]}))
        found = wanted = None
        with suppress(ModelError):
            found = [min(layer.window or LOOK, LOOK) for layer in read_config(path).layers]
        with suppress(Exception):  # the class's own checks, or arithmetic with None
            config = CONFIG_MAPPING[model_type].from_dict(content)
            used = [getattr(config, name, None) for name in ("sliding_window", "layer_types")]
            key = json.dumps(used)
            seen[key] = wanted = seen[key] if key in seen else looked_back(config)
        off = not fields.get("use_sliding_window")
        if model_type == "smollm3" and off and fields.get("layer_types") == MIXED:
            wanted = None  # its class has windows here, but with flash attention it has none
        assert found == wanted, fields


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ["default", "linear", "dynamic", "llama3", "yarn"])
def test_every_field_of_the_rotation_means_what_it_means_to_transformers(
    tmp_path: Path, kind: str, spelling: str
) -> None:
    cases = (
        (name, state, BASE | beside | {spelling: section})
        for name, values in IN_SECTION.items()
        for beside in ({}, {"rope_theta": 2e4}, {"original_max_position_embeddings": 256})
        for state, section in states(name, values, SECTION | {"rope_type": kind})
    )
    assert faults(tmp_path, "llama", cases) == []


ODD: list[Any] = [
    *(-1, 0, 0.0, 1, 2**31, 2**63, 10**400, 1e-300, 1e308, math.inf, -math.inf, math.nan),
    *(True, False, "", "64", [], [None], [1, "a"], [[1]] * 6),
    *({}, {"type": "yarn"}, {"full_attention": {}}),
]


KINDS: dict[str, Config] = {
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * (LAYERS // 2)},
    "bamba": {"attn_layer_indices": [1]},
    "nemotron_h": {"hybrid_override_pattern": "M*" * (LAYERS // 2)},
}
"""Which layers attend, where nothing is said by default."""


def odd_configs(model_type: str) -> list[tuple[str, Config]]:
    """Each field with each odd value, in a configuration that is right otherwise."""
    base = BASE | {"num_key_value_heads": 1, "hidden_size_per_layer_input": 0}
    base |= KINDS.get(model_type, {})
    sections = [SECTION | {"rope_type": kind} for kind in ("linear", "dynamic", "llama3", "yarn")]
    return [(name, base | {name: odd}) for name in VALUES for odd in ODD] + [
        (name, base | {"rope_scaling": section | {name: odd}})
        for name in IN_SECTION
        for section in sections
        for odd in ODD
    ]


def assert_read_or_refused(folder: Path, model_type: str, name: str, content: Config) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(content | {"architectures": [MODEL_TYPES[model_type]]}))
    refusal = ""
    try:
        spec = read_config(path)
    except ModelError as error:
        refusal = str(error)
    if refusal:
        counts = name == "num_hidden_layers" and "layer_types has 6 entries for" in refusal
        assert name in refusal or counts, content
        return
    if not spec.ropes:
        return
    longest = for_context(spec.rope, spec.head_dim, spec.max_positions)
    assert bool(inverse_frequencies(longest, spec.head_dim).isfinite().all()), content
    assert math.isfinite(spec.rope.attention_factor), content


@pytest.mark.promise("P23")
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_an_odd_value_of_any_field_is_read_or_refused_by_its_name(
    tmp_path: Path, model_type: str
) -> None:
    for name, content in random.Random(model_type).sample(odd_configs(model_type), 150):
        assert_read_or_refused(tmp_path, model_type, name, content)


@pytest.mark.extra
@pytest.mark.promise("P23")
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_odd_value_of_every_field_is_read_or_refused_by_its_name(
    tmp_path: Path, model_type: str
) -> None:
    for name, content in odd_configs(model_type):
        assert_read_or_refused(tmp_path, model_type, name, content)
