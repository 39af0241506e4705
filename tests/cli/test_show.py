"""``kvrt show``."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import kvrt
from kvrt.model.files.resolve import resolve

from .conftest import Kvrt

LLAMA_405B = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128_256,
    "hidden_size": 16_384,
    "intermediate_size": 53_248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}


@pytest.fixture
def shown(kvrt: Kvrt) -> Any:
    def show(model: str | Path, *options: str) -> dict[str, Any]:
        result = kvrt("show", str(model), "--backend", "cpu", "--json", *options)
        return json.loads(result.stdout)

    return show


def config_of(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(LLAMA_405B | changes))
    return folder


def test_show_says_what_a_runtime_has(shown: Any) -> None:
    facts = shown("tiny", "--kv-cache-dtype", "int8")
    with kvrt.Runtime("tiny", backend="cpu", kv_cache_dtype="int8") as runtime:
        layouts = runtime.cache.layouts
        assert facts["architecture"] == runtime.model.spec.architecture
        assert facts["weight_bytes"] == runtime.model.weight_bytes
        assert facts["dtype"] == runtime.model.dtype
        assert facts["context"] == runtime.model.max_model_len
        assert facts["kv_cache_dtype"] == layouts[0].format
        assert [group["bytes_per_token"] * 16 for group in facts["groups"]] == [
            layout.page_bytes for layout in layouts
        ]


def test_of_recurrent_layers_it_says_what_they_keep(shown: Any, tmp_path: Path) -> None:
    """The shape of Qwen3.5-9B: 24 of 32 layers have states of 2 MiB, at the end of each page."""
    config = {
        "architectures": ["Qwen3_5ForCausalLM"],
        "vocab_size": 248_320,
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32_768,
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    groups = shown(tmp_path)["groups"]
    assert [group["layers"] for group in groups] == [8, 24, 24, 24]
    assert [group["window"] for group in groups] == [0, 4, 16, 17]
    keys, inputs, _, states = (group["bytes_per_token"] for group in groups)
    assert keys == 8 * 2 * 4 * 256 * 2 == 32 << 10
    assert inputs == 24 * 8192 * 4, "as the CPU computes them"
    assert states * 16 == 24 * (2 << 20)


def test_of_a_mixture_it_says_what_a_token_is_computed_with(shown: Any, tmp_path: Path) -> None:
    """The sizes of Qwen3-30B-A3B, as its author gives them."""
    config = {
        "architectures": ["Qwen3MoeForCausalLM"], "head_dim": 128, "hidden_size": 2048,
        "intermediate_size": 6144, "max_position_embeddings": 40_960, "moe_intermediate_size": 768,
        "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
        "num_hidden_layers": 48, "num_key_value_heads": 4, "rms_norm_eps": 1e-6,
        "vocab_size": 151_936, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = shown(tmp_path)
    assert facts["parameters"] == pytest.approx(30.5e9, rel=0.005)
    assert facts["parameters_of_a_token"] == pytest.approx(3.3e9, rel=0.02)
    assert (facts["experts"], facts["experts_of_a_token"]) == (128, 8)
    one = 3 * 768 * 2048 * 2
    assert facts["expert_bytes"] == 48 * 128 * one
    assert facts["fewest_expert_bytes"] == 8 * one, "as much as --offload-experts must be given"


def test_of_latents_it_says_what_pages_keep(shown: Any, tmp_path: Path) -> None:
    """The sizes of DeepSeek-V2-Lite, as its author gives them."""
    config = {
        "architectures": ["DeepseekV2ForCausalLM"], "first_k_dense_replace": 1,
        "hidden_size": 2048, "intermediate_size": 10_944, "kv_lora_rank": 512,
        "max_position_embeddings": 163_840, "moe_intermediate_size": 1408, "n_routed_experts": 64,
        "n_shared_experts": 2, "num_attention_heads": 16, "num_experts_per_tok": 6,
        "num_hidden_layers": 27, "q_lora_rank": None, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "rms_norm_eps": 1e-6, "v_head_dim": 128, "vocab_size": 102_400,
        "torch_dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = shown(tmp_path)
    assert facts["parameters"] == pytest.approx(15.7e9, rel=0.005)
    assert facts["parameters_of_a_token"] == pytest.approx(2.66e9, rel=0.02)
    assert (facts["latent"]["rank"], facts["latent"]["rotated"]) == (512, 64)
    assert [group["bytes_per_token"] for group in facts["groups"]] == [27 * (512 + 64) * 2]


def test_a_model_of_405_billion_parameters_is_planned_from_its_config_alone(
    shown: Any, tmp_path: Path
) -> None:
    file = config_of(tmp_path) / "config.json"
    facts = shown(file, "--memory", "1500GiB", "--context", "4096")
    assert facts["parameters"] == 405_853_388_800
    assert facts["weight_bytes"] == pytest.approx(2 * facts["parameters"], rel=1e-4)
    assert "safetensors" in facts["without_weights"]
    keeps = {"keeps": "keys and values", "bytes_per_token": 126 * 2 * 8 * 256}
    assert facts["groups"] == [{"layers": 126, "window": 0, **keeps}]
    (fits,) = facts["fits"]
    assert fits["bytes"] == 4096 * 126 * 2 * 8 * 256
    left = (1500 << 30) - facts["weight_bytes"]
    assert facts["kv_bytes"] == int(0.6 * left)
    assert fits["texts"] == facts["kv_bytes"] // fits["bytes"]
    as_others = {row["weights"]: row for row in facts["weights_as"]}
    assert as_others["bfloat16"]["fits"] == facts["fits"]
    assert as_others["float32"]["fits"][0]["texts"] == 0
    quantised = shown(file, "--memory", "1500GiB", "--context", "4096", "--quantize", "int4")
    assert quantised["fits"] == as_others["int4"]["fits"]
    assert quantised["fits"][0]["texts"] > fits["texts"]


def test_weights_that_config_json_says_are_codes_are_planned_as_codes(
    shown: Any, tmp_path: Path
) -> None:
    facts = shown(config_of(tmp_path, quantization_config=GPTQ))
    assert facts["packed_matrices"] == 126 * 7
    assert facts["weight_bytes"] < facts["parameters"] * 4.5 / 8 + 2 * 2 * 16_384 * 128_256


def test_what_is_printed_names_the_groups_and_what_does_not_fit(kvrt: Kvrt, tmp_path: Path) -> None:
    config_of(
        tmp_path,
        architectures=["Gemma3ForCausalLM"],
        num_hidden_layers=18,
        head_dim=256,
        sliding_window=512,
    )
    result = kvrt("show", str(tmp_path), "--backend", "cpu", "--memory", "100MiB")
    assert "18: 3 that see all, 15 that see 512 tokens back" in result.stdout
    assert "which do not fit" in result.stdout
    assert "no weights" in result.stdout


def test_an_architecture_that_is_not_known_is_refused_with_the_nearest(
    kvrt: Kvrt, tmp_path: Path
) -> None:
    config_of(tmp_path, architectures=["LlamaForCasualLM"])
    result = kvrt("show", str(tmp_path))
    assert result.exit_code == 3
    assert "LlamaForCasualLM" in result.stderr
    assert "fix: the nearest supported architecture is LlamaForCausalLM" in result.stderr


def test_weights_that_are_damaged_are_named_and_the_rest_is_shown(
    shown: Any, tmp_path: Path
) -> None:
    folder = shutil.copytree(resolve("tiny"), tmp_path / "tiny")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    facts = shown(folder)
    assert "cut short" in facts["without_weights"]
    assert facts["stored"] == {}
    assert facts["weight_bytes"] == shown("tiny")["weight_bytes"]
