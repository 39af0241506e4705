"""config.json: every family's fields are understood, and every bad one is named."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from kvrt.errors import ModelError
from kvrt.model.config import read_config
from kvrt.model.decoder.rope import for_context, inverse_frequencies
from kvrt.model.families.rotary import MAX_POSITIONS
from kvrt.model.spec import LayerSpec, ModelSpec
from tests.model.checkpoints import BASE, LLAMA3_ROPE, YARN_ROPE

LLAMA: dict[str, Any] = BASE | {"architectures": ["LlamaForCausalLM"], "rope_theta": 10_000.0}


def spec_of(folder: Path, *, without: str = "", **changes: Any) -> ModelSpec:
    path = folder / "config.json"
    content = LLAMA | changes
    path.write_text(json.dumps({key: content[key] for key in content if key != without}))
    return read_config(path)


def error_of(folder: Path, **changes: Any) -> str:
    with pytest.raises(ModelError) as caught:
        spec_of(folder, **changes)
    return str(caught.value)


def test_both_spellings_of_the_rotary_embedding_mean_the_same(tmp_path: Path) -> None:
    old = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}
    older = {"type" if key == "rope_type" else key: value for key, value in old.items()}
    specs = [
        spec_of(tmp_path, rope_parameters=LLAMA3_ROPE),
        spec_of(tmp_path, rope_theta=500_000.0, rope_scaling=old),
        spec_of(tmp_path, rope_theta=500_000.0, rope_scaling=older),
    ]
    assert specs[0].rope == specs[1].rope == specs[2].rope
    assert specs[0].rope.kind == "llama3"


def test_scaling_written_beside_what_transformers_saved_counts_with_the_saved_base(
    tmp_path: Path,
) -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    saved = {"rope_type": "default", "rope_theta": 1e6}
    rope = spec_of(tmp_path, without="rope_theta", rope_parameters=saved, rope_scaling=yarn).rope
    assert (rope.kind, rope.factor, rope.theta) == ("yarn", 4.0, 1e6)


@pytest.mark.parametrize(
    "rope",
    [
        LLAMA3_ROPE | {"original_max_position_embeddings": 8192, "factor": 32.0},
        YARN_ROPE,
        YARN_ROPE | {"beta_fast": 20.0, "beta_slow": 2.0, "truncate": False},
        YARN_ROPE | {"attention_factor": 1.25},
        YARN_ROPE | {"mscale": 0.7, "mscale_all_dim": 1.2},
        {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 3.5},
    ],
)
def test_frequencies_are_those_of_transformers(tmp_path: Path, rope: dict[str, Any]) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    ours = spec_of(tmp_path, rope_parameters=rope, head_dim=64).rope
    settings = {k: v for k, v in LLAMA.items() if k not in ("architectures", "rope_theta")}
    config = AutoConfig.for_model("llama", **settings, head_dim=64, rope_parameters=rope)
    want, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, device="cpu")
    torch.testing.assert_close(inverse_frequencies(ours, 64), want, rtol=3e-7, atol=0.0)
    assert math.isclose(ours.attention_factor, factor)


@pytest.mark.parametrize("positions", [1, 256, 257, 700, 1024])
def test_dynamic_frequencies_are_those_of_transformers_for_a_text_of_the_longest_context(
    tmp_path: Path, positions: int
) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    section = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}
    ours = spec_of(tmp_path, rope_parameters=section, head_dim=64).rope
    settings = {k: v for k, v in LLAMA.items() if k not in ("architectures", "rope_theta")}
    config = AutoConfig.for_model("llama", **settings, head_dim=64, rope_parameters=section)
    want, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, device="cpu", seq_len=positions)
    fixed = for_context(ours, 64, positions)
    torch.testing.assert_close(inverse_frequencies(fixed, 64), want, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(
    ("rope", "length"),
    [
        (YARN_ROPE | {"original_max_position_embeddings": 256}, 1024),
        (YARN_ROPE | {"original_max_position_embeddings": 32}, 256),
        ({"rope_type": "linear", "factor": 3.5}, 896),
        ({"rope_type": "dynamic", "factor": 2.0}, 512),
        (LLAMA3_ROPE, 256),  # whose files have the stretched length
        (YARN_ROPE | {"factor": 1e6, "original_max_position_embeddings": 1024}, MAX_POSITIONS),
    ],
)
def test_the_context_is_as_long_as_the_rotation_was_stretched_to(
    tmp_path: Path, rope: dict[str, Any], length: int
) -> None:
    assert spec_of(tmp_path, rope_parameters=rope).max_positions == length


def test_the_context_of_gemma_3_is_stretched_already(tmp_path: Path) -> None:
    gemma: dict[str, Any] = {"architectures": ["Gemma3ForCausalLM"], "hidden_act": None}
    scaling = {"rope_type": "linear", "factor": 8.0}
    spec = spec_of(tmp_path, **gemma, rope_scaling=scaling)
    plain = spec_of(tmp_path, **gemma)
    assert spec.max_positions == plain.max_positions
    assert [rope.factor for rope in spec.ropes] == [8.0, 1.0]


def test_files_of_models_that_see_are_read_as_their_authors_wrote_them(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    gemma = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "torch_dtype": "bfloat16",
        "eos_token_id": [1, 106],
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10_240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "vision_config": {"hidden_size": 1152},
    }
    path.write_text(json.dumps(gemma))
    spec = read_config(path)
    assert (spec.vocab, spec.heads, spec.kv_heads, spec.head_dim) == (262_208, 8, 4, 256)
    assert (spec.max_positions, spec.tied, spec.dtype) == (131_072, True, "bfloat16")
    assert spec.eos == (1, 106)
    assert [layer.window for layer in spec.layers[:7]] == [1024] * 5 + [0, 1024]
    assert [rope.theta for rope in spec.ropes] == [1e6, 1e4]

    mrope = {"type": "mrope", "mrope_section": [16, 24, 24]}
    qwen = spec_of(
        tmp_path,
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        rope_scaling=mrope,
        use_sliding_window=False,
        vision_config={"hidden_size": 1280},
    )
    assert (qwen.architecture, qwen.qkv_bias, qwen.rope.kind) == (
        "Qwen2ForCausalLM", True, "default",
    )  # fmt: skip


def test_model_type_tells_the_architecture_where_nothing_else_does(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, without="architectures", model_type="mistral")
    assert (spec.architecture, spec.layers[0].window) == ("MistralForCausalLM", 4096)
    with pytest.raises(ModelError, match="architectures names 'bloom'"):
        spec_of(tmp_path, architectures=None, model_type="bloom")


def test_a_context_of_llama_4_is_no_longer_than_a_chunk(tmp_path: Path) -> None:
    llama4: dict[str, Any] = {
        "architectures": ["Llama4ForCausalLM"],
        "num_local_experts": 4,
        "max_position_embeddings": 1 << 20,
    }
    assert spec_of(tmp_path, **llama4).max_positions == 8192
    assert spec_of(tmp_path, **llama4, attention_chunk_size=512).max_positions == 512
    assert spec_of(tmp_path, **llama4, attention_chunk_size=None).max_positions == 1 << 20
    assert [layer.rope for layer in spec_of(tmp_path, **llama4, no_rope_layers=[]).layers] == [
        0
    ] * 3
    with pytest.raises(ModelError, match="num_experts_per_tok is 2"):
        spec_of(tmp_path, **llama4, num_experts_per_tok=2)


def test_windows_are_read_layer_by_layer(tmp_path: Path) -> None:
    def layers(**changes: Any) -> tuple[LayerSpec, ...]:
        return spec_of(tmp_path, sliding_window=9, **changes).layers

    full, short = LayerSpec(), LayerSpec(window=9)
    qwen: dict[str, Any] = {"architectures": ["Qwen2ForCausalLM"]}
    assert layers(architectures=["MistralForCausalLM"]) == (short,) * 3
    assert layers() == (full,) * 3, "Llama has no windows"
    assert layers(**qwen) == (full,) * 3, "use_sliding_window is off"
    assert layers(**qwen, use_sliding_window=True, max_window_layers=2) == (full, full, short)
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert layers(**qwen, use_sliding_window=True, layer_types=kinds) == (short, full, short)


def test_smollm3_leaves_every_fourth_layer_without_rotation(tmp_path: Path) -> None:
    smollm3: dict[str, Any] = {"architectures": ["SmolLM3ForCausalLM"]}
    spec = spec_of(tmp_path, **smollm3, num_hidden_layers=8)
    assert [layer.rope for layer in spec.layers] == [0, 0, 0, None] * 2
    spec = spec_of(tmp_path, **smollm3, no_rope_layers=[0, 1, 1])
    assert [layer.rope for layer in spec.layers] == [None, 0, 0]


def test_an_unsupported_architecture_is_refused_with_the_supported_ones_and_the_nearest(
    tmp_path: Path,
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Qwen2XForCausalLM"]}))
    with pytest.raises(ModelError) as caught:
        read_config(tmp_path / "config.json")
    message = str(caught.value)
    assert "Qwen2XForCausalLM" in message
    for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3"):
        assert f"{name}ForCausalLM" in message
    assert "Qwen2ForCausalLM" in caught.value.fix


@pytest.mark.parametrize(
    "field",
    [
        "architectures",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "rms_norm_eps",
    ],
)
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    assert f"config.json: {field} is missing" in error_of(tmp_path, without=field)
    assert f"config.json: {field} is null" in error_of(tmp_path, **{field: None})


@pytest.mark.promise("P23")
@pytest.mark.parametrize("value", [-1, 0, 2**31, 2**63, 10**400, 1e308, 0.5, "64", True, [64], {}])
@pytest.mark.parametrize(
    "field",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
    ],
)
def test_a_size_that_is_none_is_refused_by_name_at_once(
    tmp_path: Path, field: str, value: Any
) -> None:
    started = time.process_time()
    message = error_of(tmp_path, **{field: value})
    assert time.process_time() - started < 1
    assert "config.json" in message
    assert field in message


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("rms_norm_eps", {"rms_norm_eps": -1e-5}),
        ("rope_theta", {"rope_theta": 0}),
        ("num_key_value_heads", {"num_key_value_heads": 3}),
        ("num_attention_heads", {"num_attention_heads": 3, "num_key_value_heads": 3}),
        ("head_dim", {"head_dim": 17}),
        ("hidden_act", {"hidden_act": "relu"}),
        ("tie_word_embeddings", {"tie_word_embeddings": 1}),
        ("rope_scaling.rope_type", {"rope_scaling": {"rope_type": "ntk", "factor": 2.0}}),
        ("rope_scaling.type", {"rope_scaling": {"type": "xpos", "factor": 2.0}}),
        ("rope_scaling.short_factor", {"rope_scaling": {"type": "su", "factor": 2.0}}),
        ("short_factor", {"rope_scaling": {"type": "su", "short_factor": [1.0]}}),
        ("rope_scaling.rope_type", {"rope_scaling": {"rope_type": None, "type": "linear"}}),
        ("full_attention", {"rope_parameters": {"full_attention": YARN_ROPE}}),
        ("rope_theta", {"rope_theta": None}),
        ("rope_scaling.factor", {"rope_scaling": {"type": "linear"}}),
        ("rope_scaling.factor", {"rope_scaling": {"type": "linear", "factor": math.nan}}),
        ("rope_scaling", {"rope_scaling": 8}),
        ("low_freq_factor", {"rope_parameters": LLAMA3_ROPE | {"low_freq_factor": 9.0}}),
        ("beta_fast", {"rope_parameters": YARN_ROPE | {"beta_fast": 0.5}}),
        ("mscale", {"rope_parameters": YARN_ROPE | {"mscale": -0.7}}),
        ("partial_rotary_factor", {"partial_rotary_factor": 0.5}),
        ("dtype", {"dtype": "float8_e4m3fn"}),
        ("eos_token_id", {"eos_token_id": [2, 10_000]}),
        ("bos_token_id", {"bos_token_id": -1}),
        ("layer_types", {"architectures": ["Qwen3ForCausalLM"], "layer_types": ["full_attention"]}),
        (
            "layer_types",
            {"architectures": ["Qwen2ForCausalLM"], "layer_types": ["linear_attention"] * 3},
        ),
        (
            "layer_types",
            {"architectures": ["Qwen2ForCausalLM"], "layer_types": ["sliding_attention"] * 3},
        ),
        (
            "text_config.model_type",
            {
                "architectures": ["Mistral3ForConditionalGeneration"],
                "text_config": {"model_type": "mistral5"},
            },
        ),
        ("no_rope_layers", {"architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [1, 0]}),
        ("sliding_window", {"architectures": ["MistralForCausalLM"], "sliding_window": 0}),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(
    tmp_path: Path, field: str, changes: dict[str, Any]
) -> None:
    message = error_of(tmp_path, **changes)
    assert "config.json" in message
    assert field in message


@pytest.mark.promise("P23")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe{}",
        b"{" * 100_000,
        b'{"a":' * 100_000,
        b'{"vocab_size": 1' + b"0" * 100_000 + b"}",
        b" " * (1 << 20) + b"{}",
    ],
)
def test_a_file_that_is_not_an_object_of_reasonable_size_is_refused(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    started = time.process_time()
    with pytest.raises(ModelError, match=r"config\.json"):
        read_config(path)
    assert time.process_time() - started < 1


def test_a_pipe_or_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), tmp_path / "none"):
        with pytest.raises(ModelError, match=str(path)):
            read_config(path)
