"""An emulated GPU for each test, which must give everything back."""

import gc
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

from kvrt import registry
from kvrt.spi import Device, DeviceOptions
from kvrt.wrappers import Checked
from tests.emulator import library
from tests.emulator.library import Emulator

collect_ignore_glob = [] if library.loaded() else ["test_*.py"]

Open = Callable[..., Device]
MIB = 1 << 20
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
"""Wide heads: a page of 16 tokens takes 128 KiB, so a chunk is 256 tokens."""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make_model(folder: Path, config: Mapping[str, object]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), CONFIG)


@pytest.fixture(autouse=True)
def emulator() -> Iterator[Emulator]:
    """The emulated driver, as new; at its end, nothing may be left."""
    emulator = library.loaded()
    assert emulator is not None
    emulator.reset()
    yield emulator
    gc.collect()
    emulator.lose(0)
    left, violations = emulator.left(), emulator.count("violations")
    emulator.reset()
    assert left == {}
    assert violations == 0, "memory was unmapped while work for it was queued"


@pytest.fixture
def vendor(emulator: Emulator) -> str:
    return emulator.name


@pytest.fixture
def cuda(vendor: str) -> None:
    if vendor != "cuda":
        pytest.skip("only CUDA has that")


@pytest.fixture
def rocm(vendor: str) -> None:
    if vendor != "rocm":
        pytest.skip("only ROCm does so")


@pytest.fixture
def open_device(vendor: str) -> Iterator[Open]:
    """Opens devices, with their arguments checked, and closes them at the end."""
    opened: list[Device] = []

    def open_one(index: int = 0, **options: bool) -> Device:
        device = Checked(registry.load(vendor).open(index, DeviceOptions(**options)))
        opened.append(device)
        return device

    yield open_one
    for device in opened:
        device.close()
