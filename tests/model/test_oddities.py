"""Checkpoints that are unusual and right: they load, with one warning where something is odd."""

import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvrt.errors import ModelError
from kvrt.model.checkpoint.checkpoint import open_checkpoint
from kvrt.model.checkpoint.filling import fill
from kvrt.model.checkpoint.shards import INDEX, SINGLE
from kvrt.model.config import read_config
from kvrt.model.weights import arena
from kvrt.model.weights.layers import Weights
from kvrt.model.weights.weights import assemble, weight_bytes
from tests.model.checkpoints import make_model, save_model

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def load(folder: Path) -> Weights:
    checkpoint = open_checkpoint(folder, read_config(folder / "config.json"))
    spec, dtype = checkpoint.spec, checkpoint.dtype
    memory = arena.allocate(weight_bytes(spec, dtype), "cpu")
    fill(checkpoint, spec, dtype, memory)
    return assemble(spec, dtype, memory)


def change(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Replace or add tensors of a file; returns all."""
    content = load_file(path) | tensors
    save_file({name: tensor.contiguous() for name, tensor in content.items()}, path)
    return content


def one_warning(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = (r for r in caplog.records if r.levelno >= logging.WARNING)
    caplog.clear()
    return record.getMessage()


def assert_same(one: Weights, other: Weights) -> None:
    assert torch.equal(one.embedding, other.embedding)
    assert torch.equal(one.head, other.head)
    for left, right in zip(one.layers, other.layers, strict=True):
        assert torch.equal(left.qkv, right.qkv)
        assert torch.equal(left.down, right.down)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(make_model("llama-2"), tmp_path / "model")


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    return save_model(make_model("llama-3"), tmp_path / "model")


# --- an output matrix beside tied embeddings ----------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_equal_output_matrix_is_kept_once(
    tied: Path, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    embedding = load_file(tied / SINGLE)[EMBEDDING].bfloat16()
    change(tied / SINGLE, {EMBEDDING: embedding.float(), HEAD: embedding.to(dtype)})
    weights = load(tied)
    assert weights.head is weights.embedding
    assert caplog.records == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_output_matrix_of_its_own_is_used(
    tied: Path, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    head = load_file(tied / SINGLE)[EMBEDDING].clone()
    head[-1, -1] += 1
    change(tied / SINGLE, {HEAD: head.to(dtype)})
    weights = load(tied)
    assert torch.equal(weights.head, head.to(dtype).float())
    assert not torch.equal(weights.embedding, weights.head)
    assert "lm_head.weight differs from the embedding" in one_warning(caplog)


@pytest.mark.parametrize("row", [0, 137, 274])
def test_a_difference_is_found_in_any_block(
    tied: Path, row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvrt.model.checkpoint.blocks.BLOCK_BYTES", 1 << 12)
    head = load_file(tied / SINGLE)[EMBEDDING].clone()
    head[row, 7] += 1
    change(tied / SINGLE, {HEAD: head})
    assert torch.equal(load(tied).head, head)


def test_an_output_matrix_of_another_shape_is_refused(tied: Path) -> None:
    change(tied / SINGLE, {HEAD: torch.ones(3, 64)})
    with pytest.raises(ModelError, match=r"lm_head\.weight.*shape"):
        load(tied)


# --- names --------------------------------------------------------------------------------------


def test_tensors_that_the_model_does_not_need_are_left_out_with_one_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = load(folder)
    names = ["model.layers.0.self_attn.k_scale", "model.layers.1.self_attn.v_scale",
             "mtp.fc.weight", "mtp.layers.0.input_layernorm.weight",
             "v_head.summary.weight", "score.weight"]  # fmt: skip
    change(folder / SINGLE, {name: torch.ones(2, 2) for name in names})
    assert_same(load(folder), plain)
    message = one_warning(caplog)
    assert "'model.layers.0.self_attn.k_scale'" in message
    assert "and 3 more" in message


def test_rotary_buffers_of_old_checkpoints_are_left_out_in_silence(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change(folder / SINGLE, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    load(folder)
    assert caplog.records == []


def test_old_checkpoints_of_gpt_neox_load_without_their_masks_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_model(make_model("gpt-neox"), tmp_path)
    want, spec = load(folder), read_config(folder / "config.json")
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    assert rope["partial_rotary_factor"] == 0.25
    config |= {"rotary_pct": 0.25, "rotary_emb_base": 10_000}
    (folder / "config.json").write_text(json.dumps(config))
    assert read_config(folder / "config.json") == spec
    at = "gpt_neox.layers.0.attention"
    change(folder / SINGLE, {f"{at}.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool)})
    change(folder / SINGLE, {f"{at}.masked_bias": torch.tensor(-1e9)})
    assert_same(load(folder), want)
    assert not caplog.records
    change(folder / SINGLE, {f"{at}.dense.bias_scale": torch.ones(8)})
    with pytest.raises(ModelError, match=r"dense\.bias_scale.*GPTNeoX"):
        load(folder)


def test_gpt_2_is_read_as_it_was_first_published(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_model(make_model("gpt-2"), tmp_path)
    want = load(folder)
    content = load_file(folder / SINGLE)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in content.items()}
    bare |= {f"h.{at}.attn.bias": torch.ones(1, 1, 8, 8) for at in range(3)}
    save_file(bare, folder / SINGLE)
    assert_same(load(folder), want)
    assert not caplog.records
    change(folder / SINGLE, {"h.0.attn.c_attn.scale": torch.ones(8)})
    load(folder)
    assert "'transformer.h.0.attn.c_attn.scale'" in one_warning(caplog)
    change(folder / SINGLE, {"h.0.attn.c_attn.bias_scale": torch.ones(8)})
    with pytest.raises(ModelError, match=r"bias_scale.*GPT2LMHeadModel"):
        load(folder)


def test_a_feed_forward_layer_is_four_times_as_wide_where_gpt_2_says_nothing(
    tmp_path: Path,
) -> None:
    folder = save_model(make_model("gpt-2", n_inner=None), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["intermediate_size"]
    (folder / "config.json").write_text(json.dumps(config))
    assert read_config(folder / "config.json").intermediate == 256


def test_names_without_the_prefix_are_understood(
    tied: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (tied, folder):
        plain = load(path)
        content = load_file(path / SINGLE)
        save_file({k.removeprefix("model."): v for k, v in content.items()}, path / SINGLE)
        assert_same(load(path), plain)
    assert caplog.records == []


# --- files --------------------------------------------------------------------------------------


def index_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / INDEX).read_text())
    return content


def test_the_index_says_which_file_a_tensor_is_read_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_model(make_model("llama-2"), tmp_path, shard="100KB")
    plain = load(folder)
    shards = sorted(folder.glob("*.safetensors"))
    for name, file in index_of(folder)["weight_map"].items():
        right = load_file(folder / file)[name]
        for other in shards:
            if other.name != file:
                change(other, {name: torch.zeros_like(right)})
    assert_same(load(folder), plain)
    assert caplog.records == []


def test_a_tensor_that_the_index_does_not_list_is_read_if_needed_and_left_out_if_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_model(make_model("llama-2"), tmp_path, shard="100KB")
    plain = load(folder)
    content = index_of(folder)
    shard = content["weight_map"].pop(HEAD)
    (folder / INDEX).write_text(json.dumps(content))
    change(folder / shard, {"model.layers.0.old.weight": torch.ones(2)})
    assert_same(load(folder), plain)
    assert "model.layers.0.old.weight" in one_warning(caplog)


def test_any_assignment_gives_the_same_weights_or_is_refused_by_name(tmp_path: Path) -> None:
    folder = save_model(make_model("llama-2"), tmp_path, shard="100KB")
    plain, content = load(folder), index_of(folder)
    right = content["weight_map"]
    files = [*sorted(set(right.values())), "model-gone.safetensors"]
    refused = 0
    for seed in range(40):
        rng = random.Random(seed)
        changed = dict(right)
        for name in rng.sample(sorted(right), rng.choice([1, 2, 5, len(right)])):
            changed[name] = rng.choices(files, [5] * (len(files) - 1) + [1])[0]
            if rng.random() < 0.2:
                del changed[name]
        changed |= {f"extra.{seed}": rng.choice(files[:-1])} if rng.random() < 0.3 else {}
        (folder / INDEX).write_text(json.dumps(content | {"weight_map": changed}))
        if set(changed.values()) == set(files[:-1]):
            assert_same(load(folder), plain)
        else:  # a file that is not there, or one that no tensor is said to be in
            refused += 1
            with pytest.raises(ModelError, match=r"model-gone|missing"):
                load(folder)
    assert 0 < refused < 30


def test_a_single_file_beside_a_complete_index_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_model(make_model("llama-2"), tmp_path, shard="100KB")
    plain = load(folder)
    save_model(make_model("llama-2", seed=7), tmp_path / "older")
    (tmp_path / "older" / SINGLE).rename(folder / SINGLE)
    assert_same(load(folder), plain)
    assert f"{SINGLE} is left out" in one_warning(caplog)


def test_an_index_whose_files_are_gone_is_left_out_beside_a_single_file(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = load(folder)
    shards = save_model(make_model("llama-2", seed=7), tmp_path / "older", shard="100KB")
    (shards / INDEX).rename(folder / INDEX)
    assert_same(load(folder), plain)
    assert f"{INDEX} is left out" in one_warning(caplog)


# --- numbers ------------------------------------------------------------------------------------


def test_matrices_of_both_16_bit_types_become_the_one_that_most_have(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = {name: tensor.bfloat16() for name, tensor in load_file(folder / SINGLE).items()}
    odd = "model.layers.1.mlp.down_proj.weight"
    content[odd] = load_file(folder / SINGLE)[odd].half()
    content["model.norm.weight"] = content["model.norm.weight"].half()
    save_file(content, folder / SINGLE)
    weights = load(folder)
    assert torch.equal(weights.layers[1].down, content[odd].bfloat16())
    assert torch.equal(weights.final_norm, content["model.norm.weight"].float())
    assert "F16 and BF16" in one_warning(caplog)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_row_of_the_embedding_that_is_not_finite_waits_for_somebody_who_asks_for_it(
    folder: Path, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    embedding = load_file(folder / SINGLE)[EMBEDDING].clone()
    embedding[270, 3] = embedding[271, 5] = value
    change(folder / SINGLE, {EMBEDDING: embedding})
    assert torch.equal(load(folder).embedding.isfinite(), embedding.isfinite())
    assert "270, 271" in one_warning(caplog)


def test_a_row_that_is_not_finite_is_refused_where_the_embedding_gives_the_scores_too(
    tied: Path,
) -> None:
    embedding = load_file(tied / SINGLE)[EMBEDDING].clone()
    embedding[270, 3] = float("nan")
    change(tied / SINGLE, {EMBEDDING: embedding})
    with pytest.raises(ModelError, match="not finite"):
        load(tied)
