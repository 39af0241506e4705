"""A small model with random weights, of several heads, and runtimes of several ranks on it."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from kvrt.runtime import Runtime

CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 199,
    "hidden_size": 65,  # no multiple of the ranks: rows are dealt out as they come
    "intermediate_size": 97,
    "num_hidden_layers": 3,
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

MakeModel = Callable[..., Path]
MakeRuntime = Callable[..., Runtime]


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """The folder of a model that differs from the usual one in this."""

    def make(**fields: object) -> Path:
        folder = tmp_path_factory.mktemp("model")
        (folder / "config.json").write_text(json.dumps(CONFIG | fields))
        return folder

    return make


@pytest.fixture(scope="session")
def small(make_model: MakeModel) -> Path:
    return make_model()


@pytest.fixture
def make_runtime(small: Path) -> Iterator[MakeRuntime]:
    """Runtimes on the CPU backend, with all checks; closed at the end, when no rank is left."""
    opened: list[Runtime] = []

    def make(**options: object) -> Runtime:
        defaults: dict[str, object] = {
            "backend": "cpu", "load_format": "dummy", "debug": True, "seed": 1, "threads": 1,
            "memory_limit": "256MiB", "rank_timeout": 60.0,
        }  # fmt: skip
        runtime = Runtime(**{"model": small, **defaults, **options})  # type: ignore[arg-type]
        opened.append(runtime)
        return runtime

    yield make
    for runtime in opened:
        runtime.close()
    assert ranks_here() == []


def ranks_here() -> list[psutil.Process]:
    """The ranks that this process has started, in their order."""
    return ranks_of(psutil.Process())


def ranks_of(parent: psutil.Process) -> list[psutil.Process]:
    """Those that a process has started."""
    found: list[psutil.Process] = []
    for child in parent.children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            if child.status() != psutil.STATUS_ZOMBIE and "kvrt.ranks.rank" in child.cmdline():
                found.append(child)
    return sorted(found, key=lambda child: child.pid)


def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)
