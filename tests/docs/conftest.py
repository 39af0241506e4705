"""What the examples on pages are about: models, sounds and files of these names, and a server."""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from kvrt_cli.main import cli

from kvrt.bench.figures import summary
from kvrt.bench.words import save
from kvrt.server.tenants.ledger import Ledger
from tests.data.sets import conversation, written
from tests.embedding.encoders import make_encoder
from tests.embedding.test_reranker import Case
from tests.load.runs import as_aiperf, as_guidellm, run
from tests.model.adapters import make_adapter, save_adapter
from tests.model.checkpoints import make_model, save_model, save_tokenizer
from tests.model.ggufs import save_gguf, tokenizer_keys
from tests.model.sights import encoded, make_sight, picture, save_sight
from tests.server.conftest import Server, started
from tests.speech.speakers import make_speaker, sound
from tests.speech.test_audio import wav

from .pages import ROOT
from .warm import COMMAND

MODELS = ("MODEL", "Qwen3-0.6B", "SmolLM2-135M-Instruct", "chat", "code")
"""Of models on pages: the bundled model is in their place."""

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

LIKE = {
    "Qwen2.5-Coder-7B-Instruct": "Qwen3-0.6B",
    "model": "Qwen3-0.6B",
    "tuned": "Qwen3-0.6B",
    "A": "Qwen3-0.6B",
    "B": "Qwen3-0.6B",
    "C": "Qwen3-0.6B",
    "law": "tuned-on-law",
    "cooking": "tuned-on-cooking",
    "model-Q4_K_M.gguf": "Qwen3-0.6B-Q4_K_M.gguf",
    "bge-small-en-v1.5": "all-MiniLM-L6-v2",
    "Qwen3-Reranker-0.6B": "bge-reranker-v2-m3",
    "whisper-tiny.en": "whisper-tiny",
    "whisper-large-v3": "whisper-tiny",
}
"""Further models, and which of those that are there is in their place."""


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
def furnished(reader: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What readers of all pages have, beside models: texts, sets, results, a place of their own."""
    folder = tmp_path_factory.mktemp("furnished") / "reader"
    shutil.copytree(reader, folder, symlinks=True)
    for name in ("deploy", "examples", "tests"):
        (folder / name).symlink_to(ROOT / name)
    _models(folder)
    _texts(folder)
    _sets(folder)
    Ledger(folder / "usage.db").close()
    (folder / "pages.key").write_text(f"{base64.b64encode(bytes(32)).decode()}\n")
    for name, seed in {"before": 0, "after": 1, "run": 0}.items():
        made = run(seed)
        save(made, folder / f"{name}.json", summary(made))
    as_guidellm(run(4), folder / "guidellm.json")
    as_aiperf(run(5), folder / "artifacts")
    return folder


def _models(folder: Path) -> None:
    """Those that readers talk with have a chat template, and the bundled one has none."""
    tiny = ROOT / "kvrt/model/bundled/tiny"
    settings = json.loads((tiny / "tokenizer_config.json").read_text())
    for name in MODELS:
        (folder / name).unlink()
        shutil.copytree(tiny, folder / name, copy_function=os.symlink)
        (folder / name / "tokenizer_config.json").unlink()
        written(folder / name / "tokenizer_config.json", [{**settings, "chat_template": TEMPLATE}])
    gguf = folder / "Qwen3-0.6B-Q4_K_M.gguf"
    words = {**tokenizer_keys(), "tokenizer.chat_template": TEMPLATE}
    save_gguf(folder / "Llama-3.2-1B", gguf, **words)
    for name, meant in LIKE.items():
        (folder / name).symlink_to(meant)
    (folder / "models").mkdir()
    (folder / "models" / "Qwen3-0.6B").symlink_to(folder / "Qwen3-0.6B")
    for seed, name in enumerate(("tuned-on-law", "tuned-on-cooking", "one", "other"), 1):
        save_tokenizer(save_model(make_model("llama-2", seed=seed), folder / name))
    shutil.copy(ROOT / "kvrt/model/bundled/tiny/config.json", folder)


def _texts(folder: Path) -> None:
    (folder / "draft.py").write_text("def close(self):\n    pass\n" * 40)
    for name in ("lines.txt", "texts.txt", "question.txt"):
        (folder / name).write_text("w1 w2\nw3 w4 w5\n")
    prompts = [{"prompt": f"def f{number}(x):", "max_tokens": 8} for number in range(3)]
    for name in ("questions.jsonl", "prompts.jsonl"):
        written(folder / name, prompts)
    shutil.copy(folder / "talk.wav", folder / "talk.flac")
    shutil.copy(folder / "requests.jsonl", folder / "in.jsonl")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run(["git", "add", "draft.py"], cwd=folder, check=True)
    with (folder / "draft.py").open("a") as file:
        file.write("# and a change\n")


def _sets(folder: Path) -> None:
    answers = [
        "Light of short waves is scattered more than that of long ones",
        "It is not, at night",
    ]
    rows = [conversation(f"Why is the sky blue, {n}?", answer) for n, answer in enumerate(answers)]
    for name in ("raw", "set"):
        written(folder / f"{name}.jsonl", [*rows, rows[0]])
    tasks, labels = folder / "export.json", folder / "labels.xml"
    words = ("data", "export", str(folder / "set.jsonl"), "--label-studio", str(tasks))
    done = CliRunner().invoke(cli, [*words, "--config", str(labels)])
    assert not done.exit_code, done.output


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a command `kvrt` that needs no time to import anything."""
    folder = tmp_path_factory.mktemp("bin")
    path = str(folder / "socket")
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("warm.py"), path], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        command = folder / "kvrt"
        command.write_text(COMMAND.format(python=sys.executable, path=path))
        command.chmod(0o755)
        yield folder
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that pages take for theirs: any model that they name is the bundled one."""
    folder = tmp_path_factory.mktemp("served")
    with started(
        folder, "--alias", "*", "--max-model-len", "128", "--batches", str(folder / "batches")
    ) as server:
        yield server
