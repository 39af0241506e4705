"""Mixtures of experts as files have them: experts of codes, together in one tensor, and damaged."""

import json
import logging
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from kvrt_cpu.device import CpuDevice
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from kvrt.errors import ModelError
from kvrt.model.loader import Model, load_model
from kvrt.spi import Device, DeviceOptions
from tests.model.checkpoints import PHIMOE_ROPE, make_model, save_model
from tests.model.ggufs import keys_of, pack, tensors_of, write_gguf
from tests.model.stepping import stepping

TOKENS = [5, 250, 17, 88, 3, 199, 120, 40, 41, 9, 77, 260]
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


@pytest.fixture(scope="module")
def exact() -> Device:
    """The processors, which multiply codes with activations as they are."""
    return CpuDevice(DeviceOptions(exact=True))


def logits_of(model: Model, device: Device, tokens: list[int] = TOKENS) -> Tensor:
    with stepping(model, device, texts=1, longest=len(tokens)) as stepper:
        text = stepper.add(tokens)
        stepper.step([(text, len(tokens))])
    return torch.stack(text.logits)


def assert_as_transformers(
    model: Model, device: Device, reference: PreTrainedModel, tokens: list[int] = TOKENS
) -> None:
    with torch.no_grad():
        want = reference(torch.tensor([tokens])).logits[0]
    error = (logits_of(model, device, tokens) - want).abs().max() / want.abs().max()
    assert error < 1e-4


def save_gpt_oss(folder: Path) -> PreTrainedModel:
    """A gpt-oss whose experts are in MXFP4 as those of the published files; and what it means.

    The values go by OCP's Microscaling Formats 1.0: 2^(scale - 127) times a number of E2M1.
    """
    reference = make_model("gpt-oss")
    save_model(reference, folder)
    tensors = load_file(folder / "model.safetensors")
    random = torch.Generator().manual_seed(3)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, width, out = tensors.pop(name).shape
        blocks = torch.randint(0, 256, (experts, out, width // 32, 16), generator=random)
        scales = torch.randint(122, 126, (experts, out, width // 32), generator=random)
        tensors[f"{name}_blocks"] = blocks.to(torch.uint8)
        tensors[f"{name}_scales"] = scales.to(torch.uint8)
        codes = torch.stack((blocks & 15, blocks >> 4), -1).flatten(-2)
        values = E2M1[codes] * 2.0 ** (scales[..., None] - 127)
        parameter = reference.get_parameter(name)
        parameter.data.copy_(values.flatten(2).transpose(1, 2))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return reference


def test_experts_in_mxfp4_are_read_as_they_are_published(
    tmp_path: Path, exact: Device, plain: Device
) -> None:
    """By a device that multiplies codes they stay what they are; else they become floats."""
    reference = save_gpt_oss(tmp_path)
    model = load_model(tmp_path, exact)
    layer = model.decoder.weights.layers[0]
    assert {matrix.format.name for matrix in layer.expert_gate_up} == {"fp4 by 32"}
    assert len(layer.expert_gate_up) == len(layer.expert_down) == 5
    assert_as_transformers(model, exact, reference)
    assert_as_transformers(load_model(tmp_path, plain, dtype="float32"), plain, reference)


def test_experts_may_be_quantised_as_a_method_says(
    tmp_path: Path, exact: Device, plain: Device
) -> None:
    """Each in FP8 with blocks, as Qwen3's files are, beside a router of floats."""
    model = make_model("qwen-3-moe", moe_intermediate_size=64)
    folders = [save_model(model, tmp_path / name) for name in ("codes", "floats")]
    tensors = load_file(folders[0] / "model.safetensors")
    codes, floats = dict(tensors), dict(tensors)
    for name, tensor in tensors.items():
        if "_proj." in name:
            blocks = tensor.view(len(tensor) // 32, 32, -1, 32)
            scales = blocks.abs().amax((1, 3)) / 448
            stored = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
            codes[name] = stored.view_as(tensor)
            codes[f"{name}_scale_inv"] = scales
            floats[name] = (stored.float() * scales[:, None, :, None]).view_as(tensor)
    for folder, content in zip(folders, (codes, floats), strict=True):
        save_file(content, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folders[0] / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    (folders[0] / "config.json").write_text(json.dumps(config))
    given, want = (load_model(folder, plain, dtype="float32") for folder in folders)
    assert torch.equal(logits_of(given, plain), logits_of(want, plain))
    given = load_model(folders[0], exact)
    assert isinstance(given.decoder.weights.layers[1].expert_gate_up, tuple)
    left, right = logits_of(given, exact), logits_of(want, plain)
    assert (left - right).norm() / right.norm() < 0.02


@pytest.mark.parametrize("family", ["mixtral", "qwen-2-moe", "gpt-oss", "granite-moe"])
@pytest.mark.parametrize("kind", ["Q8_0", "MXFP4"])
def test_experts_of_a_gguf_file_stay_codes(
    tmp_path: Path, family: str, kind: str, exact: Device
) -> None:
    """Its experts alone are codes: the logits are those of a file with the numbers they mean, but
    for the other matrices, which are bfloat16 beside codes."""
    wide = {"intermediate_size": 64, "moe_intermediate_size": 64, "swiglu_limit": 7.0}
    folder = save_model(make_model(family, **wide), tmp_path)
    codes, floats = {}, {}
    number = GGMLQuantizationType[kind]
    block, nbytes = gguf.GGML_QUANT_SIZES[number]
    for name, tensor in tensors_of(folder).items():
        codes[name] = floats[name] = pack(tensor, "F32")
        if name.endswith("exps.weight"):
            raw = np.random.default_rng(len(floats)).integers(
                0, 256, (tensor.numel() // block, nbytes), np.uint8
            )
            if kind == "Q8_0":
                raw[:, :2] = np.array([0.001], np.float16).view(np.uint8)
            else:
                raw[:, 0] = 122
            codes[name] = kind, tuple(tensor.shape), raw.tobytes()
            values = torch.from_numpy(dequantize(raw, number)).reshape(tensor.shape)
            floats[name] = pack(values, "F32")
    keys = keys_of(folder)
    given = load_model(write_gguf(tmp_path / "codes.gguf", keys, codes), exact)
    want = load_model(write_gguf(tmp_path / "floats.gguf", keys, floats), exact)
    layer = given.decoder.weights.layers[0]
    assert len(layer.expert_gate_up) == 2 * len(layer.expert_down)
    left, right = logits_of(given, exact), logits_of(want, exact)
    assert (left - right).norm() / right.norm() < 0.02


@pytest.mark.parametrize("family", ["qwen-2-moe", "gpt-oss", "granite-moe"])
def test_experts_are_quantised_as_other_matrices_are(
    tmp_path: Path, family: str, cpu: Device
) -> None:
    """Also those whose files have columns in place of rows. What chooses them stays as it is."""
    wide = {"intermediate_size": 64, "moe_intermediate_size": 64}
    folder = save_model(make_model(family, **wide), tmp_path)
    floats, codes = load_model(folder, cpu), load_model(folder, cpu, quantize="int8")
    layer = codes.decoder.weights.layers[0]
    assert isinstance(layer.expert_gate_up, tuple)
    assert torch.equal(layer.router, floats.decoder.weights.layers[0].router)
    want, got = logits_of(floats, cpu), logits_of(codes, cpu)
    assert (got - want).norm() / want.norm() < 0.1


def test_heads_that_predict_further_tokens_are_left_out(
    tmp_path: Path, cpu: Device, caplog: pytest.LogCaptureFixture
) -> None:
    reference = make_model("glm-4-moe")
    save_model(reference, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    further = {
        name.replace("layers.2.", "layers.3."): tensor.clone()
        for name, tensor in tensors.items()
        if "layers.2." in name
    }
    further["model.layers.3.eh_proj.weight"] = torch.ones(64, 128)
    save_file(tensors | further, tmp_path / "model.safetensors", {"format": "pt"})
    with caplog.at_level(logging.WARNING):
        model = load_model(tmp_path, cpu)
    assert "tensors that the decoder does not need are left out" in caplog.text
    assert_as_transformers(model, cpu, reference)


def test_such_heads_of_a_gguf_file_are_left_out(tmp_path: Path, cpu: Device) -> None:
    reference = make_model("glm-4-moe")
    folder = save_model(reference, tmp_path)
    tensors = {name: pack(tensor, "F32") for name, tensor in tensors_of(folder).items()}
    tensors["blk.3.nextn.eh_proj.weight"] = pack(torch.ones(64, 128), "F32")
    keys = keys_of(folder) | {"glm4moe.block_count": 4, "glm4moe.nextn_predict_layers": 1}
    assert_as_transformers(load_model(write_gguf(tmp_path / "x.gguf", keys, tensors), cpu), cpu,
                           reference)  # fmt: skip


def test_what_phimoe_calls_the_factor_of_its_rotation_is_read(tmp_path: Path, cpu: Device) -> None:
    """Within the context of training. Beyond it, transformers forgets the factors for long ones."""
    reference = make_model("phi-moe", max_position_embeddings=128, **PHIMOE_ROPE)
    model = load_model(save_model(reference, tmp_path), cpu)
    # Which experts the last token has is decided by the last bits of float32.
    assert_as_transformers(model, cpu, reference, TOKENS[:-1])


def test_another_number_of_experts_is_refused_by_tensor(tmp_path: Path, cpu: Device) -> None:
    save_model(make_model("granite-moe"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_local_experts": 6}))
    with pytest.raises(ModelError, match=r"input_linear.*shape is \[5, .*there are to be 6"):
        load_model(tmp_path, cpu)


@pytest.mark.parametrize(
    ("family", "field", "value", "words"),
    [
        ("olmoe", "clip_qkv", 8.0, "clip_qkv is not supported"),
        ("olmoe", "num_experts_per_tok", 9, "num_experts_per_tok is 9; expected .* from 1 to 8"),
        ("glm-4-moe", "n_group", 3, "n_group is 3, which does not divide 16"),
        ("glm-4-moe", "num_experts_per_tok", 9, "num_experts_per_tok is more than the groups"),
        ("qwen-3-moe", "num_experts", 0, "num_experts is 0"),
    ],
)
def test_experts_that_cannot_be_are_refused_by_field(
    tmp_path: Path, cpu: Device, family: str, field: str, value: object, words: str
) -> None:
    save_model(make_model(family), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(ModelError, match=words):
        load_model(tmp_path, cpu)
