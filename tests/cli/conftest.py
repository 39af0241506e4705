"""Ways to call `kvrt`: inside this process, as a process of its own, and at a terminal."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from click.testing import CliRunner, Result
from kvrt_cli.main import cli
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

Kvrt = Callable[..., Result]

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 258,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 65536,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "eos_token_id": 257,
}
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
DUMMY = ("--backend", "cpu", "--load-format", "dummy")
"""Options for the models of this folder: their weights are random."""


def make_model(folder: Path, *, chat: bool, generation: Mapping[str, Any] | None = None) -> Path:
    """A model that knows single bytes and has no weights in its folder."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|start|>", "<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    if chat:
        settings = {"chat_template": TEMPLATE, "eos_token": "<|end|>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model(tmp_path_factory.mktemp("models") / "plain", chat=False))


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model(tmp_path_factory.mktemp("models") / "chat", chat=True))


@pytest.fixture
def kvrt() -> Kvrt:
    """Call `kvrt` inside this process; `input` is its standard input, a pipe that ends."""

    def call(*args: str, input: bytes = b"", env: Mapping[str, str] | None = None) -> Result:
        result = CliRunner().invoke(cli, args, input=input, env=env)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


ENVIRON = {**os.environ, "OMP_NUM_THREADS": "2", "TERM": "xterm", "PYTHONFAULTHANDLER": "1"}
COMMAND = (sys.executable, "-m", "kvrt_cli")
# Makes its standard input the controlling terminal, so that Ctrl-C typed there is a signal.
AT_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "os.execv(sys.executable, [sys.executable, '-m', 'kvrt_cli', *sys.argv[1:]])"
)


@pytest.fixture
def start() -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Start `kvrt` as a process of its own; what is still running at the end is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def call(*args: str, **options: Any) -> "subprocess.Popen[bytes]":
        pipes = {"stdin": subprocess.DEVNULL, "stdout": -1, "stderr": -1, "env": ENVIRON}
        process = subprocess.Popen([*COMMAND, *args], **{**pipes, **options})
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()


class Screen:
    """`kvrt` at a pseudo-terminal: type, and wait for what it prints."""

    def __init__(self, *args: str, stdout: BinaryIO | None = None) -> None:
        self.master, slave = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", AT_TERMINAL, *args],
            stdin=slave, stdout=stdout or slave, stderr=slave, env=ENVIRON,
            start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.text = ""
        self._seen = 0

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, wanted: str, seconds: float = 60.0) -> str:
        """What was printed since the last wait, up to and with `wanted`."""
        deadline = time.monotonic() + seconds
        while (at := self.text.find(wanted, self._seen)) < 0:
            left = deadline - time.monotonic()
            if left < 0 or not self.more(left):
                raise AssertionError(f"{wanted!r} did not come; the screen:\n{self.text}")
        before, self._seen = self._seen, at + len(wanted)
        return self.text[before : self._seen]

    def wait_until_asleep(self, seconds: float = 30.0) -> None:
        """Until the main thread has slept for a while: it waits for keys, and not for a turn."""
        deadline, asleep = time.monotonic() + seconds, 0
        while asleep < 10:
            assert time.monotonic() < deadline, "it is still busy"
            time.sleep(0.02)
            status = Path(f"/proc/{self.process.pid}/stat").read_text()
            asleep = asleep + 1 if status.rpartition(")")[2].split()[0] == "S" else 0

    def exit_code(self, seconds: float = 120.0) -> int:
        """Read to the end, however long nothing is printed meanwhile."""
        deadline = time.monotonic() + seconds
        while self.more(deadline - time.monotonic()):
            pass
        return self.process.wait(10)

    def more(self, seconds: float) -> bool:
        """Read what is printed next; False at the end, or if nothing comes."""
        if not select.select([self.master], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError:  # the other side is closed
            return False
        self.text += data.decode(errors="replace")
        return bool(data)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def at_terminal() -> Iterator[Callable[..., Screen]]:
    screens: list[Screen] = []

    def call(*args: str, stdout: BinaryIO | None = None) -> Screen:
        screens.append(Screen(*args, stdout=stdout))
        return screens[-1]

    yield call
    for screen in screens:
        screen.close()
