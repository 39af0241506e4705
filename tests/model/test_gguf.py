"""GGUF files are the models that they were made from, bit for bit."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file

from kvrt.model.decoder.rope import inverse_frequencies
from kvrt.model.families.decoders import FAMILIES as FAMILIES_OF
from kvrt.model.gguf.architectures import ARCHITECTURES
from kvrt.model.loader import Model, load_model
from kvrt.model.spec import ModelSpec
from kvrt.model.weights.names import NAMINGS
from kvrt.spi import Device
from tests.model.checkpoints import (
    LONGROPE,
    MSCALED_ROPE,
    PLAIN_ROPE,
    YARN_ROPE,
    make_model,
    save_model,
)
from tests.model.ggufs import keys_of, pack, save_gguf, tensors_of, write_gguf

FAMILIES: dict[str, dict[str, Any]] = {
    "llama-2": {},
    "llama-3": {},
    "llama-linear": {"hidden_act": "silu"},
    "llama-biases": {},
    "smollm-2": {},
    "mistral": {},
    "qwen-2": {"use_sliding_window": False, "layer_types": None},
    "qwen-2.5-yarn": {},
    "qwen-2.5-yarn, sharper": {"rope_parameters": YARN_ROPE | {"attention_factor": 1.5}},
    "qwen-3": {},
    "smollm-3": {"use_sliding_window": False, "no_rope_layers": None, "layer_types": None},
    "gemma": {},
    "gemma-2": {"query_pre_attn_scalar": 32},
    "gemma-3": {"query_pre_attn_scalar": 32},
    "gemma-3, longer": {
        "query_pre_attn_scalar": 32,
        "rope_parameters": {
            "full_attention": PLAIN_ROPE | {"rope_type": "linear", "factor": 8.0},
            "sliding_attention": PLAIN_ROPE,
        },
    },
    "gemma-4": {},
    "gemma-4-moe": {},
    "granite": {},
    "phi-3": {},
    "phi-3, longrope": LONGROPE | {"sliding_window": None},
    "olmo-2": {},
    "olmo-3": {},
    "glm-4": {},
    "cohere": {},
    "cohere-2": {},
    "exaone-4": {},
    "exaone-4-small": {},
    "seed-oss": {},
    "ernie-4.5": {},
    "arcee": {},
    "nemotron": {},
    "starcoder-2": {},
    "stablelm": {},
    "mixtral": {},
    "qwen-2-moe": {},
    "qwen-3-moe": {},
    "olmoe": {},
    "granite-moe": {},
    "gpt-oss": {"swiglu_limit": 7.0},
    "glm-4-moe": {},
    "ernie-4.5-moe": {"use_bias": False},
    "minimax-m2": {},
    "deepseek-2": {"rope_parameters": MSCALED_ROPE | {"mscale": 0.707, "mscale_all_dim": 0.707}},
    "deepseek-2-lite": {},
    "deepseek-3": {"rope_parameters": MSCALED_ROPE | {"mscale": 1.0, "mscale_all_dim": 1.0}},
    "glm-4.7-flash": {"routed_scaling_factor": 1.5},
    "youtu": {},
    "dots-1": {"sliding_window": None, "layer_types": None},
    "hunyuan": {},
    "phi-2": {},
    "gpt-neox": {},
    "gpt-2": {},
    "gpt-neox-sequential": {"hidden_act": "gelu"},
    "lfm-2": {},
    "lfm-2-moe": {},
}


def test_tensors_have_the_names_that_the_formats_own_library_gives_them() -> None:
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    for name, architecture in ARCHITECTURES.items():
        switches = FAMILIES_OF[architecture.mixture or architecture.family].switches
        namings = [architecture.naming or switches.get("naming", "llama")]
        namings += [architecture.naming_of_experts] * bool(architecture.naming_of_experts)
        theirs = gguf.get_tensor_name_map(numbers[name], 8)
        drafts = gguf.MODEL_TENSOR.NEXTN_ENORM in gguf.MODEL_TENSORS[numbers[name]]
        for kind, row in (item for naming in namings for item in NAMINGS[naming].items()):
            if row.gguf.endswith(".scale"):
                continue  # which converters name themselves
            if ".nextn." in row.gguf and not drafts:
                continue  # the library writes that layer of few architectures
            if kind in ("q_norm", "k_norm") and "qk_norm" not in switches:
                continue
            if architecture.router and kind in ("gate", "up", "down"):
                continue  # where all layers have experts, the library has no names for others
            file = row.file.format(3, "").replace("..", ".")
            if row.bare:  # which converters part from the rest of the name
                file = file.replace("correction_bias", "correction").replace("dt_bias", "dt_proj")
            # Some of the library's names are those of files that have no such beginning.
            found = theirs.get_name(file) or theirs.get_name(file.removeprefix("model."))
            expected = row.gguf.format(3, "").rstrip(".")
            assert found == expected or (kind, found) == ("head", None), (name, kind)


def matrices(model: Model) -> list[torch.Tensor]:
    weights = model.decoder.weights
    biases = (weights.final_norm_bias, weights.head_bias)
    layers = (
        getattr(layer, name)
        for layer in weights.layers
        for name in type(layer).__dataclass_fields__
    )
    return [
        weights.embedding,
        weights.head,
        weights.final_norm,
        *(tensor for tensor in (*biases, *layers) if isinstance(tensor, torch.Tensor)),
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["F32", "BF16", "F16"])
def test_a_gguf_file_is_the_model_that_it_was_made_from(
    tmp_path: Path, family: str, kind: str, cpu: Device
) -> None:
    dtype = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}[kind]
    folder = save_model(make_model(family.split(",")[0], **FAMILIES[family]), tmp_path, dtype=dtype)
    given = load_model(save_gguf(folder, tmp_path / "model.gguf", kind), cpu)
    want = load_model(folder, cpu)
    assert given.dtype == want.dtype
    for left, right in zip(matrices(given), matrices(want), strict=True):
        assert torch.equal(left, right)
    assert_same_shape(given.spec, want.spec)


ELSEWHERE = ("architecture", "naming", "eos", "bos", "dtype", "attention_scale", "ropes")
"""What files name otherwise, or do not say; the last two are compared by what they are for."""


def test_an_older_file_makes_keys_and_values_of_latents_by_one_matrix(
    tmp_path: Path, cpu: Device
) -> None:
    folder = save_model(make_model("deepseek-3", **FAMILIES["deepseek-3"]), tmp_path)
    keys, tensors = keys_of(folder), tensors_of(folder)
    for part in ("key", "value"):
        own = f"deepseek2.attention.{part}_length"
        keys[own] = keys.pop(f"{own}_mla")
    keys["deepseek2.attention.head_count_kv"] = 4
    stored = load_file(folder / "model.safetensors")
    for layer in range(3):
        del tensors[f"blk.{layer}.attn_k_b.weight"], tensors[f"blk.{layer}.attn_v_b.weight"]
        both = stored[f"model.layers.{layer}.self_attn.kv_b_proj.weight"]
        tensors[f"blk.{layer}.attn_kv_b.weight"] = both
    packed = {name: pack(tensor, "F32") for name, tensor in tensors.items()}
    given = load_model(write_gguf(tmp_path / "older.gguf", keys, packed), cpu)
    want = load_model(folder, cpu)
    for left, right in zip(matrices(given), matrices(want), strict=True):
        assert torch.equal(left, right)
    assert_same_shape(given.spec, want.spec)


def assert_same_shape(given: ModelSpec, want: ModelSpec) -> None:
    """Two files say the same of a model, but for the rounding of their numbers."""
    for field in (one.name for one in fields(ModelSpec) if one.name not in ELSEWHERE):
        value = getattr(want, field)
        near = pytest.approx(value) if isinstance(value, float) else value
        assert getattr(given, field) == near, field
    scales = [spec.attention_scale or spec.head_dim**-0.5 for spec in (given, want)]
    assert scales[0] == pytest.approx(scales[1])
    for one, other in zip(given.ropes, want.ropes, strict=True):
        assert one.attention_factor == pytest.approx(other.attention_factor)
        frequencies = [inverse_frequencies(rope, want.head_dim) for rope in (one, other)]
        torch.testing.assert_close(*frequencies, rtol=1e-6, atol=0.0)
