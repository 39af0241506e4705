"""Quantised Hugging Face checkpoints as whole models: what is loaded, and what is refused."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvrt import registry
from kvrt.errors import ModelError
from kvrt.model.files.jsonfile import Fields
from kvrt.model.loader import load_model
from kvrt.model.packed.config import read_method
from kvrt.spi import DenseOps, Device, PackedMatrices
from kvrt.testing.packing import PackingDevice
from kvrt.wrappers import Checked
from tests.model.checkpoints import make_model, save_model
from tests.model.packed.test_methods import CASES
from tests.model.packed.test_quantize import logits_of

WEIGHTS = "model.safetensors"
SMALL = {"num_hidden_layers": 1, "intermediate_size": 64}


def packed(bits: int, group: int, layout: str, **weights: Any) -> dict[str, Any]:
    kind = {"num_bits": bits, "type": "int", "strategy": "group" if group else "channel",
            "group_size": group or None, "symmetric": True} | weights  # fmt: skip
    groups = {"group_0": {"targets": ["Linear"], "weights": kind}}
    return {"quant_method": "compressed-tensors", "format": layout, "config_groups": groups,
            "ignore": ["lm_head"]}  # fmt: skip


def gptq(bits: int, group: int, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False} | more


def bitsandbytes(**fields: Any) -> dict[str, Any]:
    return {"quant_method": "bitsandbytes", "llm_int8_skip_modules": None} | fields


CONFIGS: dict[str, dict[str, Any]] = {
    "gptq of 4 bits": gptq(4, 32),
    "gptq of 2 bits": gptq(2, 16),
    "gptq of 3 bits": gptq(3, 32),
    "gptq of 8 bits by rows": gptq(8, -1),
    "gptq, version 2": gptq(4, 32, checkpoint_format="gptq_v2"),
    "gptq in another order": gptq(4, 32, desc_act=True),
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm",
            "zero_point": True},
    "packed of 4 bits": packed(4, 32, "pack-quantized"),
    "packed of 4 bits with zeros": packed(4, 32, "pack-quantized", symmetric=False),
    "packed of 8 bits by rows": packed(8, 0, "pack-quantized"),
    "packed in another order": packed(4, 32, "pack-quantized", actorder="group"),
    "int8 by rows": packed(8, 0, "int-quantized"),
    "int8 with zeros": packed(8, 32, "int-quantized", symmetric=False),
    "fp8 by blocks": {"quant_method": "fp8", "weight_block_size": [32, 64]},
    "fp8 by blocks that are cut": {"quant_method": "fp8", "weight_block_size": [36, 40]},
    "fp8 by rows": packed(8, 0, "float-quantized", type="float"),
    "fp8 by tensor": packed(8, 0, "float-quantized", type="float", strategy="tensor"),
    "nvfp4": packed(4, 16, "nvfp4-pack-quantized", type="float", strategy="tensor_group"),
    "mxfp4": packed(4, 32, "mxfp4-pack-quantized", type="float"),
    "nf4": bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "nf4, scales in codes": bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                         bnb_4bit_use_double_quant=True),
    "int8 of bitsandbytes": bitsandbytes(load_in_8bit=True),
}  # fmt: skip


def write(name: str, folder: Path) -> tuple[Path, Path]:
    """A checkpoint whose layers are quantised but for q, k and v, and one of its values."""
    torch.manual_seed(len(name))
    given = save_model(make_model("llama-2", **SMALL), folder / "given")
    floats = save_model(make_model("llama-2", **SMALL), folder / "floats")
    stored = load_file(given / WEIGHTS)
    values = dict(stored)
    for key in [key for key in stored if re.search(r"\.(o|gate|up|down)_proj\.", key)]:
        shape = tuple(stored.pop(key).shape)
        method, (tensors, exact) = CASES[name](shape)
        power = 2.0**-5  # of two, so that products are as exact as before
        if "weight_global_scale" in tensors:
            tensors["weight_global_scale"] /= power
        else:
            scale = next((end for end in tensors if end.endswith("quant_map")), method.scales)
            exponents = tensors[scale].dtype == torch.uint8
            tensors[scale] = tensors[scale] - 5 if exponents else tensors[scale] * power
        values[key] = exact * power
        stem = key.removesuffix("weight")
        stored |= {stem + end: tensor.contiguous() for end, tensor in tensors.items()}
    save_file(stored, given / WEIGHTS)
    save_file(values, floats / WEIGHTS)
    configure(given, CONFIGS[name])
    return given, floats


def configure(folder: Path, quantisation: dict[str, Any]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"quantization_config": quantisation}))


@pytest.fixture
def device() -> Iterator[Device]:
    device = Checked(PackingDevice(registry.load("cpu", timeout=60).open(), exact=True))
    yield device
    device.close()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_computes_with_the_very_numbers_of_the_checkpoint(
    name: str, device: Device, cpu: Device, tmp_path: Path
) -> None:
    given, floats = write(name, tmp_path)
    want = logits_of(load_model(floats, cpu), cpu)
    unpacked = load_model(given, cpu, dtype="float32")
    assert torch.equal(logits_of(unpacked, cpu), want)
    assert "4 quantised) are unpacked" in unpacked.notes[0]
    model = load_model(given, device)
    stays = not re.search("another order|cut|nf4", name)
    assert isinstance(model.decoder.weights.layers[0].down, tuple) == stays
    assert (model.notes == ()) == stays
    if stays:
        near = 1e-4 * float(want.abs().max())
        assert torch.allclose(logits_of(model, device), want, rtol=1e-4, atol=near)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_processor_multiplies_codes_with_the_bits_of_their_numbers(
    name: str, cpu: Device, exact_cpu: Device, tmp_path: Path
) -> None:
    """And with activations in codes, close to them; groups of 16 it unpacks."""
    given, floats = write(name, tmp_path)
    want = logits_of(load_model(floats, cpu), cpu)
    model = load_model(given, exact_cpu)
    stays = not re.search("another order|cut|2 bits|3 bits|nvfp4|nf4", name)
    assert isinstance(model.decoder.weights.layers[0].down, tuple) == stays
    if stays:
        assert torch.equal(logits_of(model, exact_cpu), want)
    rounded = load_model(given, cpu)
    assert isinstance(rounded.decoder.weights.layers[0].down, tuple) == stays
    got = logits_of(rounded, cpu)
    assert (got - want).square().mean() < 0.02**2 * want.square().mean()


@pytest.mark.parametrize("name", ["fp8 by blocks", "fp8 by rows", "fp8 by tensor"])
def test_the_processor_multiplies_fp8_with_the_bits_of_weights_unpacked_to_bfloat16(
    name: str, cpu: Device, tmp_path: Path
) -> None:
    given, _ = write(name, tmp_path)
    models = [load_model(given, cpu), load_model(given, cpu, dtype="bfloat16")]
    assert models[0].notes == ()
    packed, dense = cpu.extension(PackedMatrices), cpu.extension(DenseOps)  # type: ignore[type-abstract]
    assert packed is not None
    assert dense is not None
    layers = [model.decoder.weights.layers[0] for model in models]
    for field in ("o", "gate_up", "down"):
        kept, unpacked = (getattr(layer, field) for layer in layers)
        x = torch.randn(37, unpacked.shape[1])
        assert torch.equal(packed.linear(x, kept), dense.linear(x, unpacked))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"quant_method": "hqq"}, "quant_method is 'hqq', .*supported are gptq, awq, compressed-"),
        ({"quant_method": 4}, "quantization_config.quant_method"),
        (bitsandbytes(), "load_in_4bit is false, and load_in_8bit too"),
        (
            bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf3"),
            "bnb_4bit_quant_type is 'nf3'; supported are nf4 and fp4",
        ),
        ({"bits": 5}, "quantization_config.bits is 5; supported are 2, 3, 4, 8"),
        ({"group_size": 0}, "quantization_config.group_size is 0"),
        ({"group_size": 48}, "makes groups of 48 columns, but '.*o_proj.weight' has 64"),
        ({"group_size": 64}, r"qzeros': is I32 \[2, 8\], but config.json makes it I32 \[1, 8\]"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'; supported are gptq and"),
        ({"quant_method": "awq", "version": "gemv"}, "version is 'gemv'; supported is gemm"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, r"weight_block_size is \[128\]"),
        (packed(4, 32, "nvfp4-pack-quantized", type="float"), "group_size must be 16, of type flo"),
        (packed(4, 32, "mxfp4-pack-quantized"), "group_size must be 32, of type float"),
        (packed(8, 32, "mxfp4-pack-quantized", type="float"), "num_bits is 8; supported are 4"),
    ],
)
def test_a_configuration_that_is_not_supported_is_refused_by_its_field(
    changes: dict[str, Any], says: str, cpu: Device, tmp_path: Path
) -> None:
    given, _ = write("gptq of 4 bits", tmp_path)
    configure(given, CONFIGS["gptq of 4 bits"] | changes)
    with pytest.raises(ModelError, match=says):
        load_model(given, cpu)


JUNK: tuple[object, ...] = (None, True, -1, 0, 3, 1.5, "x", [], ["x"], {}, {"x": {}}, 10**20)


def edits(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The configuration with one field, at any depth, left out or something else."""
    for name, value in config.items():
        yield {key: kept for key, kept in config.items() if key != name}
        for junk in JUNK:
            yield config | {name: junk}
        if isinstance(value, dict):
            for edited in edits(value):
                yield config | {name: edited}


@pytest.mark.parametrize("name", CONFIGS)
def test_any_value_of_any_field_is_a_method_or_an_error_that_names_a_field(name: str) -> None:
    errors = []
    for config in edits(CONFIGS[name]):
        try:
            read_method(Fields("config.json", {"quantization_config": config}))
        except ModelError as error:
            errors.append(str(error))
    assert len(errors) > 20
    assert all("config.json: quantization_config" in error for error in errors)


UP = "model.layers.0.mlp.up_proj."
NF4_STATE = "weight.quant_state.bitsandbytes__nf4"


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"shape": [32, 128]}, r"has the shape \[32, 128\], which"),
        ({"shape": [64, 32]}, r"says \[64, 32\], which is not the shape of the codes"),
        ({"shape": [2**40, 2**40]}, "which is not the shape of the codes"),
        ({"blocksize": 128}, "has blocks of 128 and 256, not of 64 and 256"),
        ({"nested_offset": 1e999}, "has a nested_offset that is not finite"),
        ({"nested_offset": "x"}, "does not say shape, blocksize and nested_offset"),
        ({"shape": "ab"}, "does not say shape"),
        ({"shape": 7}, "does not say shape"),
        ({"shape": None}, "does not say shape"),
    ],
)
def test_what_4_bits_say_of_themselves_has_to_be_so(
    state: dict[str, Any], says: str, cpu: Device, tmp_path: Path
) -> None:
    given, _ = write("nf4, scales in codes", tmp_path)
    tensors = load_file(given / WEIGHTS)
    said = json.loads(bytes(tensors[UP + NF4_STATE].tolist())) | state
    tensors[UP + NF4_STATE] = torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
    save_file(tensors, given / WEIGHTS)
    with pytest.raises(ModelError, match=says):
        load_model(given, cpu)


@pytest.mark.parametrize(
    ("name", "end", "value", "says"),
    [
        ("awq", "qzeros", None, f"{UP}qzeros' is missing, which quantised weights need"),
        ("awq", "scales", float("nan"), f"{UP}qweight': has values that are not finite"),
        ("awq", "scales", float("inf"), f"{UP}qweight': has values that are not finite"),
        ("gptq of 4 bits", "g_idx", 1, f"{UP}g_idx': has columns in another order than config"),
        ("gptq in another order", "g_idx", -1, f"{UP}g_idx': names groups that are not from 0 to"),
        ("gptq in another order", "g_idx", 99, f"{UP}g_idx': names groups that are not from 0 to"),
        ("mxfp4", "weight_scale", 255, f"{UP}weight_packed': has values that are not finite"),
        ("nvfp4", "weight_scale", float("nan"), f"{UP}weight_packed': has values that are not fin"),
        (
            "nvfp4",
            "weight_global_scale",
            0.0,
            f"{UP}weight_packed': has values that are not finite",
        ),
        ("nvfp4", "weight_global_scale", None, f"{UP}weight_global_scale' is missing"),
        ("fp8 by blocks", "weight", float("nan"), f"{UP}weight': has values that are not finite"),
        ("nf4", "weight.quant_map", float("nan"), f"{UP}weight': has values that are not finite"),
        ("nf4", "weight.absmax", None, f"{UP}weight.absmax' is missing"),
        ("nf4", NF4_STATE, 0, "quant_state.*: does not say shape, blocksize and nested"),
        ("nf4, scales in codes", NF4_STATE, None, f"{UP}weight.quant_state.* is missing"),
        ("int8 of bitsandbytes", "weight_format", 1, "says that codes are not row after row"),
    ],
)
def test_a_damaged_tensor_is_refused_by_its_name(
    name: str, end: str, value: float | None, says: str, device: Device, cpu: Device, tmp_path: Path
) -> None:
    given, _ = write(name, tmp_path)
    tensors = load_file(given / WEIGHTS)
    if value is None:
        del tensors[UP + end]
    else:
        tensors[UP + end].view(-1)[0] = value
    save_file(tensors, given / WEIGHTS)
    for each in (device, cpu):
        with pytest.raises(ModelError, match=says):
            load_model(given, each)


def test_the_names_of_pages_depend_on_how_codes_are_meant(cpu: Device, tmp_path: Path) -> None:
    given, _ = write("gptq of 4 bits", tmp_path)
    before = load_model(given, cpu).fingerprint
    configure(given, CONFIGS["gptq, version 2"])
    assert load_model(given, cpu).fingerprint != before
