"""config.json of models with recurrent layers: old spellings and new ones, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from kvrt.errors import ModelError
from kvrt.model.config import read_config
from kvrt.model.spec import ModelSpec
from tests.model.checkpoints import BASE, LATENT

GRANITE = {
    "architectures": ["GraniteMoeHybridForCausalLM"],
    "num_local_experts": 0,
    "shared_intermediate_size": 96,
    "mamba_n_heads": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
FALCON = {"architectures": ["FalconH1ForCausalLM"], "mamba_n_heads": 8, "mamba_d_ssm": 96}
NEMOTRON = {
    "architectures": ["NemotronHForCausalLM"],
    "mamba_num_heads": 8,
    "mamba_head_dim": 12,
    "layers_block_type": ["linear_attention", "mlp", "full_attention"],
}
KIMI = LATENT | {
    "architectures": ["KimiLinearForCausalLM"],
    "q_lora_rank": None,
    "num_experts": 6,
    "num_experts_per_token": 2,
    "mla_use_nope": True,
    "linear_num_heads": 4,
    "linear_head_dim": 16,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
}
OLMO = {"architectures": ["OlmoHybridForCausalLM"], "num_hidden_layers": 4}


def spec_of(folder: Path, *without: str, **fields: Any) -> ModelSpec:
    path = folder / "config.json"
    content = {name: value for name, value in (BASE | fields).items() if name not in without}
    path.write_text(json.dumps(content))
    return read_config(path)


@pytest.mark.parametrize(
    ("written", "without", "changes"),
    [
        (GRANITE, (), {"layer_types": ["mamba", "attention", "mamba"]}),
        (GRANITE, (), {"time_step_limit": [0.0, {"__float__": "Infinity"}]}),
        (GRANITE, (), {"time_step_limit": [0.0, float("inf")], "mamba_d_head": "auto"}),
        (
            NEMOTRON,
            ("layers_block_type",),
            {"hybrid_override_pattern": "M-*"},
        ),
        (NEMOTRON, ("num_hidden_layers",), {}),
        (
            KIMI,
            ("layer_types", "linear_num_heads", "linear_head_dim"),
            {
                "linear_attn_config": {
                    "full_attn_layers": [3],
                    "kda_layers": [1, 2],
                    "num_heads": 4,
                    "head_dim": 16,
                    "short_conv_kernel_size": 4,
                }
            },
        ),
    ],
)
def test_old_spellings_and_new_ones_mean_the_same(
    tmp_path: Path, written: dict[str, Any], without: tuple[str, ...], changes: dict[str, Any]
) -> None:
    usual = spec_of(tmp_path, **written)
    assert spec_of(tmp_path, *without, **written | changes) == usual
    assert {layer.recurrent for layer in usual.layers} == {True, False}


def test_rotation_without_a_base_is_none(tmp_path: Path) -> None:
    """As OLMo Hybrid has it."""
    none = spec_of(tmp_path, **OLMO, rope_parameters={"rope_theta": None, "rope_type": "default"})
    assert not none.ropes
    assert spec_of(tmp_path, **OLMO).rope.theta == 10_000.0


def test_layers_that_attend_beside_a_state_space_keep_both(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, **FALCON)
    assert [group.layers for group in spec.groups] == [(0, 1, 2)] * 4
    nemotron = spec_of(tmp_path, **NEMOTRON)
    assert [group.layers for group in nemotron.groups] == [(2,), (0,), (0,), (0,)]


@pytest.mark.parametrize(
    ("written", "changes", "says"),
    [
        (GRANITE, {"layer_types": ["mamba", "sliding", "mamba"]}, "layer_types names 'sliding'"),
        (GRANITE, {"layer_types": ["mamba"] * 3}, "layer_types has no layer that attends"),
        (GRANITE, {"layer_types": ["attention"] * 3}, "layer_types has no layer with a state"),
        (GRANITE, {"layer_types": ["mamba"]}, "layer_types has 1 entries for 3 layers"),
        (GRANITE, {"position_embedding_type": "alibi"}, "position_embedding_type is 'alibi'"),
        (GRANITE, {"mamba_n_groups": 3}, "mamba_n_heads is 8, no multiple of 3 groups"),
        (GRANITE, {"mamba_d_head": 7}, "mamba_n_heads is 8, which does not split 128"),
        (GRANITE, {"time_step_limit": [2.0, 1.0]}, "time_step_limit is"),
        (GRANITE, {"time_step_limit": [2.0]}, "time_step_limit is"),
        (FALCON, {"ssm_multipliers": [1.0]}, "ssm_multipliers has 1 numbers; expected 5"),
        (FALCON, {"mamba_proj_bias": True}, "mamba_proj_bias is not supported"),
        (NEMOTRON, {"layers_block_type": ["mamba", "vit", "attention"]}, "layer_types names 'vit'"),
        (
            NEMOTRON,
            {"layers_block_type": ["mamba", "moe", "attention"], "moe_latent_size": 16},
            "moe_latent_size is not supported",
        ),
        (KIMI, {"moe_router_activation_func": "softmax"}, "moe_router_activation_func is"),
        (KIMI, {"moe_router_activation_func": "tanh"}, "moe_router_activation_func is 'tanh'"),
        (KIMI, {"mla_use_nope": False}, "mla_use_nope is not supported"),
        (KIMI, {"layer_types": ["linear_attention"] * 3}, "layer_types has no full_attention"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(
    tmp_path: Path, written: dict[str, Any], changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ModelError, match=says):
        spec_of(tmp_path, **written | changes)
