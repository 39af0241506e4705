"""A small model with random weights, and runtimes on it.

Its heads are wide, so that a page of 16 tokens takes 256 KiB and a chunk holds only eight of them:
a memory limit of a few chunks is then a few hundred tokens, and pages run out soon.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kvrt.engine.assembly
from kvrt.registry import load
from kvrt.runtime import Runtime
from kvrt.spi import Device, DeviceOptions
from kvrt.wrappers import Checked
from tests.spans import Spans

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 199,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}

MakeRuntime = Callable[..., Runtime]
Break = Callable[[Callable[[Device], Device]], None]


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_lm")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture
def make_runtime(tiny_lm: Path) -> Iterator[MakeRuntime]:
    """Runtimes on the CPU backend, with all checks and poisoned pages; closed at the end."""
    opened: list[Runtime] = []

    def make(**options: object) -> Runtime:
        defaults: dict[str, object] = {
            "backend": "cpu", "load_format": "dummy", "debug": True, "seed": 1,
            "memory_limit": "512MiB",  # not a share of what happens to be free
        }  # fmt: skip
        runtime = Runtime(**{"model": tiny_lm, **defaults, **options})  # type: ignore[arg-type]
        opened.append(runtime)
        return runtime

    yield make
    for runtime in opened:
        runtime.close()


@pytest.fixture
def break_device(monkeypatch: pytest.MonkeyPatch) -> Break:
    """Put a wrapper around the device of the runtimes that are made from here on."""

    def put(wrapper: Callable[[Device], Device]) -> None:
        def open_device(name: str, index: int, options: DeviceOptions, **_: object) -> Device:
            return Checked(wrapper(load(name).open(index, options)))

        monkeypatch.setattr(kvrt.engine.assembly, "open_device", open_device)

    return put


def watched(break_device: Break) -> list[Spans]:
    """The devices of the runtimes that are made from here on."""
    devices: list[Spans] = []

    def put(device: Device) -> Device:
        devices.append(Spans(device))
        return devices[-1]

    break_device(put)
    return devices


def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def pages_in_use(runtime: Runtime) -> int:
    return runtime.stats().cache.used_pages
