"""What the examples on pages are about: models, sounds and files of these names, and a server."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.embedding.encoders import make_encoder
from tests.embedding.test_reranker import Case
from tests.model.adapters import make_adapter, save_adapter
from tests.model.checkpoints import make_model, save_model, save_tokenizer
from tests.model.ggufs import save_gguf
from tests.model.sights import encoded, make_sight, picture, save_sight
from tests.server.conftest import Server, started
from tests.speech.speakers import make_speaker, sound
from tests.speech.test_audio import wav

from .pages import ROOT

MODELS = ("MODEL", "Qwen3-0.6B", "SmolLM2-135M-Instruct", "chat", "code")
"""Of models on pages: the bundled model is in their place."""


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which somebody tries what the pages say."""
    folder = tmp_path_factory.mktemp("reader")
    for name in MODELS:
        (folder / name).symlink_to(ROOT / "kvrt/model/bundled/tiny")
    adapted = make_model("llama-2")
    save_tokenizer(save_model(adapted, folder / "Llama-3.2-1B"))
    save_gguf(folder / "Llama-3.2-1B", folder / "Qwen3-0.6B-Q4_K_M.gguf")
    for seed, name in enumerate(("law", "cooking")):
        save_adapter(folder / f"llama-{name}-lora", make_adapter(adapted, seed=seed))
    make_speaker(folder / "whisper-tiny")
    (folder / "talk.wav").write_bytes(wav(sound(2.0, 0)))
    make_encoder("bert", folder / "all-MiniLM-L6-v2")
    Case("bert", folder / "bge-reranker-v2-m3")
    save_sight(make_sight(), folder / "gemma-3-4b-it")
    (folder / "cat.jpg").write_bytes(encoded(picture(1)))
    asked = {
        "model": "Qwen3-0.6B",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 4,
    }
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": asked}
    (folder / "requests.jsonl").write_text(json.dumps(line) + "\n")
    return folder


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that pages take for theirs: any model that they name is the bundled one."""
    folder = tmp_path_factory.mktemp("served")
    with started(
        folder, "--alias", "*", "--max-model-len", "128", "--batches", str(folder / "batches")
    ) as server:
        yield server
