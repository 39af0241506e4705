"""Matrices that are codes in a GGUF file stay codes, exactly, where the device multiplies them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from kvrt import registry
from kvrt.errors import ModelError
from kvrt.model.loader import load_model
from kvrt.model.packed.ggml import TYPES
from kvrt.spi import Device, WeightFormat
from kvrt.testing.packing import PackingDevice, TorchMatrices
from kvrt.wrappers import Checked
from tests.model.checkpoints import make_model, save_model
from tests.model.ggufs import keys_of, pack, tensors_of, write_gguf
from tests.model.packed.test_quantize import logits_of

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
        "tie_word_embeddings": True}  # fmt: skip
K_MIX = {"attn_v": "Q6_K", "ffn_down": "Q6_K", "token_embd": "Q8_0"}
"""As files of Q4_K_M are: parts of one weight are of two types."""


@pytest.fixture
def device() -> Iterator[Device]:
    device = Checked(PackingDevice(registry.load("cpu", timeout=60).open(), exact=True))
    yield device
    device.close()


def write(folder: Path, type_of: Callable[[str], str], damaged: str = "") -> Path:
    """A model of random codes whose numbers are of a usual size.

    Args:
        damaged: the tensor one of whose scales is no number.
    """
    save_model(make_model("llama-3", **WIDE), folder)
    rng = np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    for name, tensor in tensors_of(folder).items():
        kind = type_of(name) if tensor.dim() == 2 else "F32"
        if kind in ("F32", "F16"):
            tensors[name] = pack(tensor, kind)
        elif kind in ("Q8_0", "Q4_0", "Q5_1"):
            raw = quants.quantize(tensor.numpy(), GGMLQuantizationType[kind])
            tensors[name] = kind, tuple(tensor.shape), raw.tobytes()
        else:  # which the reference cannot write
            count = tensor.numel() // TYPES[kind].elements
            raw = rng.integers(0, 256, (count, TYPES[kind].nbytes), dtype=np.uint8)
            for at in {"Q4_K": (0, 2), "Q6_K": (208,)}[kind]:
                small = rng.uniform(-1, 1, count) * 0.0002
                small[7] = np.nan if name == damaged else 0
                raw[:, at : at + 2] = small.astype(np.float16).view(np.uint8).reshape(count, 2)
            tensors[name] = kind, tuple(tensor.shape), raw.tobytes()
    return write_gguf(folder / "model.gguf", keys_of(folder), tensors)


def mixed(name: str) -> str:
    return next((kind for part, kind in K_MIX.items() if part in name), "Q4_K")


@pytest.mark.parametrize("kind", ["mixed", "Q8_0", "Q4_0", "Q5_1"])
def test_a_model_computes_with_the_very_numbers_of_the_file(
    kind: str, device: Device, tmp_path: Path
) -> None:
    path = write(tmp_path, mixed if kind == "mixed" else lambda _: kind)
    model, floats = load_model(path, device), load_model(path, device, dtype="float32")
    assert model.notes == ()
    weights = model.decoder.weights
    assert isinstance(weights.layers[1].qkv, tuple)
    expected = ["q4_k", "q4_k", "q6_k"] if kind == "mixed" else [kind.lower()] * 3
    assert [matrix.format.name for matrix in weights.layers[1].qkv] == expected
    assert weights.head is weights.embedding
    assert isinstance(floats.decoder.weights.layers[1].qkv, torch.Tensor)
    got, want = logits_of(model, device), logits_of(floats, device)
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))
    assert model.fingerprint != floats.fingerprint
    assert model.weight_bytes < 1.05 * path.stat().st_size


def test_the_processor_multiplies_codes_with_the_bits_of_their_numbers(
    cpu: Device, exact_cpu: Device, tmp_path: Path
) -> None:
    """And with activations in codes, close to them."""
    path = write(tmp_path, mixed)
    want = logits_of(load_model(path, cpu, dtype="float32"), cpu)
    for device in (exact_cpu, cpu):
        model = load_model(path, device)
        assert model.notes == ()
        assert model.weight_bytes < 1.05 * path.stat().st_size
        got = logits_of(model, device)
        assert (got - want).square().mean() < 0.05**2 * want.square().mean()
        assert torch.equal(got, want) == (device is exact_cpu)


def test_a_weight_of_codes_and_floats_is_unpacked_and_a_note_says_so(
    device: Device, tmp_path: Path
) -> None:
    path = write(tmp_path, lambda name: "F16" if "attn_v" in name else "Q8_0")
    model = load_model(path, device)
    layer = model.decoder.weights.layers[0]
    assert isinstance(layer.qkv, torch.Tensor)
    assert isinstance(layer.o, tuple)
    (note,) = model.notes
    assert "4 Q8_0) are unpacked" in note


def test_what_the_device_does_not_multiply_is_unpacked(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def multiplies(_: TorchMatrices, format: WeightFormat) -> bool:
        return format.name != "q6_k"

    path = write(tmp_path, mixed)
    want = logits_of(load_model(path, device), device)
    monkeypatch.setattr(TorchMatrices, "multiplies", multiplies)
    model = load_model(path, device)
    layer = model.decoder.weights.layers[0]
    assert isinstance(layer.qkv, torch.Tensor)
    assert isinstance(layer.gate_up, tuple)
    assert isinstance(layer.down, torch.Tensor)
    (note,) = model.notes
    assert "4 Q4_K, 4 Q6_K) are unpacked" in note
    got = logits_of(model, device)
    assert (got - want).square().mean() < 0.02**2 * want.square().mean()


@pytest.mark.parametrize("name", ["blk.1.attn_q.weight", "blk.0.ffn_down.weight"])
def test_a_scale_that_is_no_number_is_refused_by_its_tensor(
    name: str, device: Device, tmp_path: Path
) -> None:
    path = write(tmp_path, mixed, damaged=name)
    with pytest.raises(ModelError, match=f"tensor '{name}': has values that are not finite"):
        load_model(path, device)
