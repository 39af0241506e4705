"""Safetensors: what is good is loaded exactly, and what is not is refused by name."""

import json
import os
import random
import re
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvrt.errors import ModelError
from kvrt.model.checkpoint.blocks import BLOCK_BYTES
from kvrt.model.checkpoint.checkpoint import open_checkpoint
from kvrt.model.checkpoint.filling import fill, fingerprint
from kvrt.model.checkpoint.shards import INDEX
from kvrt.model.config import read_config
from kvrt.model.weights import arena
from kvrt.model.weights.layers import Weights
from kvrt.model.weights.weights import ALIGNMENT, assemble, place, weight_bytes
from kvrt.spi import DType
from tests.model.checkpoints import make_model, save_model
from tests.model.damage import WEIGHTS, damage, read_file, write_file

MIB = 1 << 20


def load(folder: Path, dtype: DType | None = None) -> Weights:
    spec = read_config(folder / "config.json")
    checkpoint = open_checkpoint(folder, spec)
    spec, dtype = checkpoint.spec, dtype or checkpoint.dtype
    memory = arena.allocate(weight_bytes(spec, dtype), "cpu")
    fill(checkpoint, spec, dtype, memory)
    return assemble(spec, dtype, memory)


def error_of(folder: Path, dtype: DType | None = None) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load(folder, dtype)
    return caught.value


def rewrite(path: Path, **tensors: torch.Tensor | None) -> None:
    """Replace, add or (None) leave out tensors of a file."""
    content = load_file(path) | tensors
    save_file({k: v.contiguous() for k, v in content.items() if v is not None}, path)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    return save_model(make_model("qwen-2"), folder, dtype=torch.bfloat16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(make_model("llama-biases"), tmp_path)


# --- what is good -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_matrices_have_the_dtype_asked_for_and_vectors_are_float32(
    folder: Path, dtype: DType
) -> None:
    stored = load_file(folder / WEIGHTS)
    weights = load(folder, dtype)
    prefix = "model.layers.1.self_attn."
    qkv = torch.cat([stored[f"{prefix}{name}_proj.weight"] for name in "qkv"])
    assert torch.equal(weights.layers[1].qkv, qkv.to(getattr(torch, dtype)))
    bias = torch.cat([stored[f"{prefix}{name}_proj.bias"] for name in "qkv"])
    assert weights.layers[1].qkv_bias is not None
    assert torch.equal(weights.layers[1].qkv_bias, bias)
    assert torch.equal(weights.final_norm, stored["model.norm.weight"])


def test_shards_give_the_same_weights_as_one_file(tmp_path: Path) -> None:
    model = make_model("llama-2")
    one = load(save_model(model, tmp_path / "one"))
    folder = save_model(model, tmp_path / "many", shard="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    many = load(folder)
    assert torch.equal(one.head, many.head)
    for left, right in zip(one.layers, many.layers, strict=True):
        assert torch.equal(left.qkv, right.qkv)
        assert torch.equal(left.gate_up, right.gate_up)


def test_tied_embeddings_are_kept_once_even_if_the_file_has_both(tmp_path: Path) -> None:
    folder = save_model(make_model("llama-3"), tmp_path)
    embedding = load_file(folder / WEIGHTS)["model.embed_tokens.weight"]
    rewrite(folder / WEIGHTS, **{"lm_head.weight": embedding})
    weights = load(folder)
    assert weights.head is weights.embedding


def test_a_tensor_of_many_blocks_at_an_odd_offset_is_copied_exactly(tmp_path: Path) -> None:
    rows = 3 * BLOCK_BYTES // (4 * 64) + 5
    folder = save_model(make_model("smollm-2", vocab_size=rows, hidden_size=48), tmp_path)
    entries, data = read_file(folder / WEIGHTS)
    write_file(folder / WEIGHTS, json.dumps(entries) + " " * 3, data)
    want = data[slice(*entries["model.embed_tokens.weight"]["data_offsets"])]
    assert load(folder).embedding.numpy().tobytes() == want


def test_loading_takes_the_memory_of_the_arena_and_little_more(tmp_path: Path) -> None:
    rows = 400_000  # 77 MB of float32
    folder = save_model(make_model("smollm-2", vocab_size=rows, hidden_size=48), tmp_path)
    size = (folder / WEIGHTS).stat().st_size
    before = reset_peak()
    weights = load(folder)
    assert weights.nbytes >= size - 100_000
    assert peak() - before < size + 48 * MIB


def test_a_fingerprint_is_of_every_byte_and_of_no_file(tmp_path: Path) -> None:
    def of(folder: Path) -> str:
        spec = read_config(folder / "config.json")
        checkpoint = open_checkpoint(folder, spec)
        arena = torch.empty(weight_bytes(spec, "float32"), dtype=torch.uint8)
        return fingerprint(checkpoint, fill(checkpoint, spec, "float32", arena))

    model = make_model("llama-2")
    folder = save_model(model, tmp_path / "a")
    first = of(folder)
    assert first == of(save_model(model, tmp_path / "b", shard="100KB"))
    good = (folder / WEIGHTS).read_bytes()
    entries, data = read_file(folder / WEIGHTS)
    write_file(folder / WEIGHTS, json.dumps(entries) + " " * 3, data)
    assert first == of(folder)
    start, rng = len(good) - len(data), random.Random(0)
    entries.pop("__metadata__", None)
    for begin, end in (entry["data_offsets"] for entry in entries.values()):
        for at in (begin, rng.randrange(begin // 4, end // 4) * 4, end - 4):
            raw = bytearray(good)
            raw[start + at] ^= 1
            (folder / WEIGHTS).write_bytes(raw)
            assert of(folder) != first, f"byte {at}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_weight_begins_at_a_multiple_of_the_alignment(tmp_path: Path, dtype: DType) -> None:
    odd = {"vocab_size": 197, "hidden_size": 48, "intermediate_size": 52}
    spec = read_config(save_model(make_model("llama-biases", **odd), tmp_path) / "config.json")
    memory = arena.allocate(weight_bytes(spec, dtype), "cpu")
    ends = 0
    for weight, view in place(spec, dtype, memory):
        at = view.data_ptr() - memory.data_ptr()
        assert at % ALIGNMENT == 0
        assert ends <= at < ends + ALIGNMENT, weight.field
        ends = at + view.nbytes
    assert ends <= memory.nbytes


# --- what is not ------------------------------------------------------------------------------


@pytest.mark.parametrize("beyond", [1, 8, 1 << 62])
def test_a_header_longer_than_its_file_says_how_much_there_is(folder: Path, beyond: int) -> None:
    path = folder / WEIGHTS
    there = path.stat().st_size - 8
    raw = bytearray(path.read_bytes())
    raw[:8] = (there + beyond).to_bytes(8, "little")
    path.write_bytes(raw)
    error = str(error_of(folder))
    assert f"header length is {there + beyond}, but only {there} bytes follow" in error


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = save_model(make_model("llama-2"), tmp_path, shard="100KB")
    gone = sorted(folder.glob("*.safetensors"))[1]
    gone.unlink()
    error = error_of(folder)
    assert "model.safetensors.index.json" in str(error)
    assert gone.name in str(error)
    assert "--offline" in error.fix


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "sub/x.safetensors", "x.bin", "", 7, None]
)
def test_an_index_can_only_name_safetensors_beside_it(tmp_path: Path, name: object) -> None:
    folder = save_model(make_model("llama-2"), tmp_path, shard="100KB")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = name
    index.write_text(json.dumps(content))
    assert "model.norm.weight" in str(error_of(folder))
    assert "weight_map" in str(error_of(folder))


def test_a_tensor_in_two_shards_of_which_the_index_names_neither_is_refused(tmp_path: Path) -> None:
    folder = save_model(make_model("llama-2"), tmp_path, shard="100KB")
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    name, tensor = next(iter(load_file(second).items()))
    rewrite(first, **{name: tensor})
    index = folder / INDEX
    content = json.loads(index.read_text())
    del content["weight_map"][name]
    index.write_text(json.dumps(content))
    assert re.search(f"{name}.*is also in", str(error_of(folder)))


def test_pickles_are_never_loaded_and_the_fix_says_how_to_convert_them(tmp_path: Path) -> None:
    save_model(make_model("llama-2"), tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / "pytorch_model.bin")
    error = error_of(tmp_path)
    assert "pytorch_model.bin" in str(error)
    assert "unpickling can run code" in str(error)
    assert "save_pretrained" in error.fix


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path: Path) -> None:
    save_model(make_model("llama-2"), tmp_path)
    (tmp_path / WEIGHTS).unlink()
    assert "model.safetensors.index.json" in str(error_of(tmp_path))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.2.self_attn.q_proj.weight_scale",
        "model.layers.3.mlp.down_proj.weight",
        "model.layers.1.self_attn.q_proj.lora_A.weight",
        "model.norm.bias",
        "lm_head.bias",
    ],
)
def test_a_tensor_that_the_text_would_depend_on_is_refused(folder: Path, name: str) -> None:
    rewrite(folder / WEIGHTS, **{name: torch.ones(16)})
    error = error_of(folder)
    assert name in str(error)
    assert "config.json" in error.fix


def test_a_value_too_large_for_the_dtype_names_the_tensor_and_the_way_out(folder: Path) -> None:
    stored = load_file(folder / WEIGHTS)["lm_head.weight"]
    stored[3, 5] = -1e5
    rewrite(folder / WEIGHTS, **{"lm_head.weight": stored})
    error = error_of(folder, "float16")
    assert "lm_head.weight" in str(error)
    assert "too large for float16" in str(error)
    assert "bfloat16" in error.fix
    load(folder, "bfloat16")


def reset_peak() -> int:
    """Let the system count the peak of resident memory from here; returns the memory now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]


def assert_refused(good: Path, folder: Path, seed: int) -> None:
    mutation = damage(good, folder, seed)
    size = sum(path.stat().st_size for path in folder.iterdir())
    before, started = reset_peak(), time.process_time()
    try:
        weights = load(folder)
    except ModelError as error:
        message = str(error)
        missing = [word for word in mutation.words if word not in message]
        assert not missing, f"{mutation}: {message}"
        assert "\n" not in message
    else:
        assert mutation.harmless, f"{mutation} was accepted"
        load_file(folder / WEIGHTS)  # the format's own library accepts it as well
        assert torch.equal(weights.layers[0].qkv, load(good).layers[0].qkv)
    assert time.process_time() - started < 1, mutation
    assert peak() - before < 2 * size + 64 * MIB, mutation


@pytest.mark.promise("P23")
@pytest.mark.parametrize("start", range(0, 420, 21))
def test_a_damaged_checkpoint_is_refused_by_name_at_once_in_little_memory(
    good: Path, tmp_path: Path, start: int
) -> None:
    for seed in range(start, start + 21):
        assert_refused(good, tmp_path / str(seed), seed)


@pytest.mark.extra
@pytest.mark.promise("P23")
def test_two_thousand_damaged_checkpoints_are_refused(good: Path, tmp_path: Path) -> None:
    for seed in range(1000, 3000):
        assert_refused(good, tmp_path / str(seed), seed)
        os.remove(tmp_path / str(seed) / WEIGHTS)
