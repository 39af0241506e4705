"""What a GGUF file may be: of which types and keys, whole or in parts; and what is refused."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from kvrt.errors import ModelError, RequestError
from kvrt.model.gguf.header import read_header
from kvrt.model.gguf.types import BY_NAME, TYPES
from kvrt.model.loader import load_model
from kvrt.model.packed.ggml import TYPES as PACKED
from kvrt.spi import Device
from tests.model.checkpoints import (
    make_model,
    save_model,
)
from tests.model.ggufs import Tensor, keys_of, pack, save_gguf, tensors_of, write_gguf

from .test_gguf import matrices


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as safetensors, in a folder where no GGUF is."""
    folder = tmp_path_factory.mktemp("model")
    return save_model(make_model("smollm-2"), folder)


def floats(folder: Path) -> dict[str, Tensor]:
    """The tensors of the model in a folder, as a file of floats has them."""
    return {name: pack(tensor, "F32") for name, tensor in tensors_of(folder).items()}


def error_of(path: Path, device: Device, named: Path | None = None) -> ModelError:
    """The error about a file, which it names; `named`: if that is another."""
    with pytest.raises(ModelError) as caught:
        load_model(path, device)
    assert (named or path).name in str(caught.value)
    return caught.value


# --- packed types -------------------------------------------------------------------------------


def test_types_have_the_blocks_that_the_reference_says() -> None:
    for number, kind in TYPES.items():
        if number in set(GGMLQuantizationType):  # which lacks the newest
            reference = GGMLQuantizationType(number)
            assert (reference.name, *gguf.GGML_QUANT_SIZES[reference]) == tuple(kind)


def packed(tensor: torch.Tensor, name: str, seed: int) -> tuple[Tensor, torch.Tensor]:
    """Random blocks of a type in the shape of a tensor, and the numbers they stand for."""
    kind = BY_NAME[name]
    raw = np.random.default_rng(seed).integers(
        0, 60, (tensor.numel() // kind.numbers, kind.nbytes), dtype=np.uint8
    )
    numbers = dequantize(raw, GGMLQuantizationType[name]).reshape(tensor.shape)
    return (name, tuple(tensor.shape), raw.tobytes()), torch.from_numpy(numbers)


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_matrices_are_loaded_as_the_numbers_they_stand_for(
    tmp_path: Path, name: str, dtype: Any, cpu: Device
) -> None:
    wide = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4,
            "num_key_value_heads": 2, "num_hidden_layers": 1}  # fmt: skip
    folder = save_model(make_model("llama-2", **wide), tmp_path)
    tensors = floats(folder)
    numbers: dict[str, torch.Tensor] = {}
    for seed, (key, tensor) in enumerate(tensors_of(folder).items()):
        if tensor.dim() == 2:
            tensors[key], numbers[key] = packed(tensor, name, seed)
    file = write_gguf(tmp_path / "model.gguf", keys_of(folder), tensors)
    weights = load_model(file, cpu, dtype=dtype).decoder.weights
    kind, layer = getattr(torch, dtype), weights.layers[0]
    assert torch.equal(weights.embedding, numbers["token_embd.weight"].to(kind))
    assert torch.equal(layer.down, numbers["blk.0.ffn_down.weight"].to(kind))
    q = numbers["blk.0.attn_q.weight"].to(kind).view(4, 32, 2, 256)
    assert torch.equal(layer.qkv[:256].view(4, 2, 32, 256), q.transpose(1, 2))


def test_packed_matrices_become_bfloat16_and_a_note_says_so(tmp_path: Path, plain: Device) -> None:
    """On a device that does not multiply them."""
    save_model(make_model("smollm-2", hidden_size=96), tmp_path)
    tensors = floats(tmp_path)
    for key, tensor in tensors_of(tmp_path).items():
        if tensor.dim() == 2:
            tensors[key], _ = packed(tensor, "Q8_0", 0)
    path = write_gguf(tmp_path / "x.gguf", keys_of(tmp_path), tensors)
    model = load_model(path, plain)
    assert model.dtype == "bfloat16"
    (note,) = model.notes
    assert "22 Q8_0" in note


def test_a_packed_number_that_is_none_is_refused_by_tensor(tmp_path: Path, cpu: Device) -> None:
    save_model(make_model("smollm-2", hidden_size=96), tmp_path)
    tensors = floats(tmp_path)
    name, shape, raw = packed(tensors_of(tmp_path)["blk.1.ffn_up.weight"], "Q8_0", 0)[0]
    tensors["blk.1.ffn_up.weight"] = name, shape, b"\x00\x7e" + raw[2:]  # a scale of NaN
    path = write_gguf(tmp_path / "x.gguf", keys_of(tmp_path), tensors)
    assert "tensor 'blk.1.ffn_up.weight': has values that are not finite" in str(
        error_of(path, cpu)
    )


def test_a_type_that_cannot_be_unpacked_yet_is_refused_by_tensor(
    folder: Path, tmp_path: Path, cpu: Device
) -> None:
    tensors = floats(folder)
    rows = tensors["blk.0.ffn_up.weight"][1]
    numel = rows[0] * rows[1]
    tensors["blk.0.ffn_up.weight"] = "I16", rows, bytes(2 * numel)
    error = error_of(write_gguf(tmp_path / "x.gguf", keys_of(folder), tensors), cpu)
    assert "tensor 'blk.0.ffn_up.weight': type is I16; supported are" in str(error)
    assert "Q4_K_M" in error.fix


# --- what a file may be besides -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"general.type": "adapter"}, "is an adapter"),
        ({"general.type": "mmproj"}, "mmproj"),
        ({"general.architecture": "clip"}, "mmproj"),
        ({"general.type": "imatrix"}, "imatrix"),
        ({"general.architecture": "bloom"}, "supported are llama, qwen2"),
        ({"general.architecture": 7}, "general.architecture is 7"),
        ({}, "holds a vocabulary only"),
    ],
)
def test_a_file_that_is_no_model_kvrt_runs_says_what_it_is(
    folder: Path, tmp_path: Path, keys: dict[str, Any], words: str, cpu: Device
) -> None:
    path = write_gguf(tmp_path / "x.gguf", keys_of(folder) | keys)
    assert words in str(error_of(path, cpu))


def test_an_unknown_architecture_is_refused_with_the_nearest(
    folder: Path, tmp_path: Path, cpu: Device
) -> None:
    keys = keys_of(folder) | {"general.architecture": "gemma3n"}
    assert error_of(write_gguf(tmp_path / "x.gguf", keys), cpu).fix.endswith("is gemma3")


KEYS: dict[str, tuple[Any, str]] = {
    "llama.block_count": (1 << 20, "llama.block_count is 1048576"),
    "llama.embedding_length": (47, "but the keys make it [275, 47]"),
    "llama.attention.head_count": ([3, 1, 3], "layers of different sizes"),
    "llama.attention.head_count_kv": (2, "does not divide 3"),
    "llama.attention.key_length": (15, "even number"),
    "llama.attention.value_length": (8, "values of another width"),
    "llama.rope.dimension_count": (8, "rotation of a part of each head"),
    "llama.rope.freq_base": (float("nan"), "llama.rope.freq_base is nan"),
    "llama.rope.scaling.type": ("longrope", "supported are none, linear, yarn"),
    "llama.expert_count": (8, "llama.expert_used_count is missing"),
    "llama.vocab_size": (7, "but the embedding has 275 rows"),
    "llama.attention.layer_norm_rms_epsilon": ("x", "expected a number"),
    "llama.attention.sliding_window_pattern": (6, "is not supported"),
    "llama.context_length": (0, "llama.context_length is 0"),
    "llama.feed_forward_length": (100, "tensor 'blk.0.ffn_gate.weight': sizes make it [96, 48]"),
    "split.count": (3, "split.count is 3, but the name"),
}


@pytest.mark.promise("P23")
@pytest.mark.parametrize("key", KEYS)
def test_a_key_out_of_range_is_refused_by_name(
    folder: Path, tmp_path: Path, key: str, cpu: Device
) -> None:
    value, words = KEYS[key]
    assert words in str(error_of(save_gguf(folder, tmp_path / "x.gguf", **{key: value}), cpu))


@pytest.mark.parametrize(("window", "want"), [(13, 13), (255, 255), (256, 0), (4096, 0)])
def test_a_window_as_long_as_the_context_is_none(
    folder: Path, tmp_path: Path, window: int, want: int, cpu: Device
) -> None:
    keys = {"llama.attention.sliding_window": window}
    spec = load_model(save_gguf(folder, tmp_path / "x.gguf", **keys), cpu).spec
    assert {layer.window for layer in spec.layers} == {want}


def test_a_window_whose_layers_no_key_names_is_refused(tmp_path: Path, cpu: Device) -> None:
    save_model(make_model("qwen-3"), tmp_path)
    path = save_gguf(tmp_path, tmp_path / "x.gguf", **{"qwen3.attention.sliding_window": 13})
    assert "qwen3.attention.sliding_window is 13, and no key says" in str(error_of(path, cpu))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"rope.scaling.factor": 0.5}, "rope.scaling.factor is 0.5"),
        ({"rope.scaling.yarn_ext_factor": 0.0}, "rope.scaling.yarn_ext_factor is 0"),
        ({"rope.scaling.yarn_log_multiplier": 0.1}, "rope.scaling.yarn_log_multiplier is 0.1"),
        ({"rope.scaling.yarn_beta_fast": 1.0}, "rope.scaling.yarn_beta_fast is 1"),
        ({"rope.freq_base": 1.0}, "rope.freq_base must exceed 1"),
    ],
)
def test_a_rotation_that_cannot_be_is_refused_by_key(
    tmp_path: Path, keys: dict[str, float], words: str, cpu: Device
) -> None:
    save_model(make_model("qwen-2.5-yarn"), tmp_path)
    changed = {f"qwen2.{name}": item for name, item in keys.items()}
    assert words in str(error_of(save_gguf(tmp_path, tmp_path / "x.gguf", **changed), cpu))


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_frequency_is_divided_by_a_positive_number(
    folder: Path, tmp_path: Path, bad: float, cpu: Device
) -> None:
    divisors = torch.ones(8)
    divisors[3] = bad
    tensors = floats(folder) | {"rope_freqs.weight": pack(divisors, "F32")}
    error = error_of(write_gguf(tmp_path / "x.gguf", keys_of(folder), tensors), cpu)
    assert "tensor 'rope_freqs.weight': has values that are not positive" in str(error)


@pytest.mark.parametrize("per_layer", [True, False])
def test_a_number_may_be_given_for_each_layer(
    folder: Path, tmp_path: Path, per_layer: bool, cpu: Device
) -> None:
    heads = [1, 1, 1] if per_layer else 1
    keys = {"llama__attention__head_count_kv": heads}
    assert load_model(save_gguf(folder, tmp_path / "x.gguf", **keys), cpu).spec.kv_heads == 1


def test_a_tensor_too_few_or_too_many_is_refused_by_name(
    folder: Path, tmp_path: Path, cpu: Device
) -> None:
    tensors = floats(folder)
    path = tmp_path / "x.gguf"
    less = {key: tensor for key, tensor in tensors.items() if key != "blk.2.attn_v.weight"}
    assert "tensor 'blk.2.attn_v.weight' is missing" in str(
        error_of(write_gguf(path, keys_of(folder), less), cpu)
    )
    more = tensors | {"blk.1.attn_q_norm.weight": pack(torch.ones(16), "F32")}
    error = error_of(write_gguf(path, keys_of(folder), more), cpu)
    assert "tensor 'blk.1.attn_q_norm.weight' is not part of a llama" in str(error)


def test_a_file_without_a_tokenizer_takes_ids_and_says_so(
    folder: Path, tmp_path: Path, cpu: Device
) -> None:
    model = load_model(save_gguf(folder, tmp_path / "x.gguf"), cpu)
    with pytest.raises(RequestError, match="has no tokenizer in it"):
        model.encode("text")


def test_what_the_author_recommends_is_read(folder: Path, tmp_path: Path, cpu: Device) -> None:
    keys = {"general.sampling.temp": 0.5, "general.sampling.top_k": 20,
            "general.sampling.top_p": 0.75, "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.eot_token_id": 5}  # fmt: skip
    model = load_model(save_gguf(folder, tmp_path / "x.gguf", **keys), cpu)
    assert model.generation.sample
    assert (model.generation.temperature, model.generation.top_k) == (0.5, 20)
    assert model.generation.top_p == 0.75
    assert model.generation.file == str(model.path), "who is to blame for them"
    assert model.eos_ids == {2, 5}


# --- files and folders --------------------------------------------------------------------------


def split(folder: Path, into: Path, count: int = 3) -> list[Path]:
    """The model in a folder as GGUF files that were split off one."""
    tensors = floats(folder)
    names = list(tensors)
    paths = []
    for number in range(count):
        some = {name: tensors[name] for name in names[number::count]}
        keys = {"split.no": number, "split.count": count, "split.tensors.count": len(tensors)}
        path = into / f"model-{number + 1:05}-of-{count:05}.gguf"
        first = keys_of(folder) if number == 0 else {}
        paths.append(write_gguf(path, first | keys, some))
    return paths


def test_files_that_were_split_off_one_are_one_model(
    folder: Path, tmp_path: Path, cpu: Device
) -> None:
    paths = split(folder, tmp_path)
    want = load_model(save_gguf(folder, tmp_path.parent / "whole.gguf"), cpu)
    for path in (*paths, tmp_path):
        model = load_model(path, cpu)
        assert model.fingerprint == want.fingerprint
        assert all(map(torch.equal, matrices(model), matrices(want)))


def test_a_split_that_is_not_whole_names_what_is_missing(
    folder: Path, tmp_path: Path, cpu: Device
) -> None:
    first, second, third = split(folder, tmp_path)
    second.unlink()
    assert second.name in str(error_of(first, cpu))
    third.rename(second)
    write_gguf(third, {"split.no": 2, "split.count": 3})
    assert "split.no is 2, but the file's name makes it 1" in str(error_of(first, cpu, second))
    write_gguf(second, {"split.no": 1, "split.count": 3})
    write_gguf(third, {"split.no": 2, "split.count": 3})
    assert "split.tensors.count is" in str(error_of(first, cpu))


def test_a_folder_with_one_gguf_model_is_that_model(
    folder: Path, tmp_path: Path, cpu: Device
) -> None:
    path = save_gguf(folder, tmp_path / "model-Q8_0.gguf")
    write_gguf(tmp_path / "mmproj-model-f16.gguf", {"general.type": "mmproj"})
    assert load_model(tmp_path, cpu).path == path
    save_gguf(folder, tmp_path / "model-Q4_K_M.gguf")
    error = error_of(tmp_path, cpu)
    assert "model-Q4_K_M.gguf" in str(error)
    assert "model-Q8_0.gguf" in str(error)
    assert "model-Q4_K_M.gguf" in error.fix


def test_safetensors_go_before_a_gguf_file_beside_them(tmp_path: Path, cpu: Device) -> None:
    save_model(make_model("smollm-2"), tmp_path)
    save_gguf(tmp_path, tmp_path / "model.gguf")
    assert load_model(tmp_path, cpu).path == tmp_path


def test_a_fingerprint_is_of_every_byte_of_a_file(tmp_path: Path, cpu: Device) -> None:
    save_model(make_model("smollm-2"), tmp_path)
    path = save_gguf(tmp_path, tmp_path / "x.gguf")
    names = {load_model(path, cpu).fingerprint}
    data, entries = path.read_bytes(), read_header(path).tensors.values()
    for entry in entries:
        changed = bytearray(data)
        changed[entry.end - 4] ^= 1
        path.write_bytes(changed)
        names.add(load_model(path, cpu).fingerprint)
    assert len(names) == 1 + len(entries)


def test_random_weights_need_only_the_header(folder: Path, tmp_path: Path, cpu: Device) -> None:
    path = save_gguf(folder, tmp_path / "x.gguf")
    model = load_model(path, cpu, load_format="dummy")
    assert model.fingerprint != load_model(path, cpu).fingerprint
