"""Weights that leave memory and come back: the same bytes at the same place, whatever they are made
of."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kvrt.errors import ModelError
from kvrt.model.loader import load_model
from kvrt.model.weights.resident import Resident
from kvrt.registry import open_device
from kvrt.spi import Device
from tests.model.checkpoints import make_model, save_model, save_tokenizer
from tests.model.ggufs import save_gguf

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "as the files have them": ("llama-3", {"dtype": "bfloat16"}),
    "of another dtype": ("llama-3", {"dtype": "float32"}),
    "rows in another order": ("cohere", {}),
    "one tensor for several": ("phi-3", {"dtype": "float16"}),
    "experts": ("qwen-3-moe", {}),
    "columns of the files": ("gpt-oss", {}),
    "quantised": ("llama-3", {"quantize": "int4"}),
    "quantised and kept": ("llama-3", {"quantize": "int8", "quantized_dir": "kept"}),
    "random": ("llama-3", {"load_format": "dummy", "seed": 3}),
    "F16 of GGUF": ("llama-3", {"gguf": "F16"}),
    "Q4_0 of GGUF": ("llama-3", {"gguf": "Q4_0"}),
    "Q8_0 of GGUF as floats": ("llama-3", {"gguf": "Q8_0", "dtype": "float32"}),
}


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    device = open_device("cpu")
    yield device
    device.close()


def loaded(folder: Path, device: Device, family: str, **options: Any) -> Resident:
    where = save_tokenizer(save_model(make_model(family), folder, dtype=torch.bfloat16))
    if kind := options.pop("gguf", None):
        where = save_gguf(folder, folder / "model.gguf", kind)
    if "quantized_dir" in options:
        options["quantized_dir"] = folder / options["quantized_dir"]
    return load_model(where, device, **options).resident


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_back_is_what_was_there(tmp_path: Path, device: Device, kind: str) -> None:
    family, options = KINDS[kind]
    resident = loaded(tmp_path, device, family, **options)
    before, address = resident.memory.clone(), resident.memory.data_ptr()
    for _ in range(2):
        resident.drop()
        assert not resident.memory.any(), "new memory of the system is zero"
        resident.bring_back()
        assert torch.equal(resident.memory, before)
        assert resident.memory.data_ptr() == address


def test_files_that_were_copied_anew_are_read_and_others_are_refused(
    tmp_path: Path, device: Device
) -> None:
    resident = loaded(tmp_path, device, "llama-3")
    before, file = resident.memory.clone(), tmp_path / "model.safetensors"
    kept = file.read_bytes()
    resident.drop()
    file.unlink()
    with pytest.raises(ModelError, match="No such file"):
        resident.bring_back()
    file.write_bytes(kept)
    os.utime(file, (1, 1))
    resident.bring_back()
    assert torch.equal(resident.memory, before)
    resident.drop()
    save_model(make_model("llama-3", seed=1), tmp_path, dtype=torch.bfloat16)
    with pytest.raises(ModelError, match="other weights"):
        resident.bring_back()
