"""Two of kvrt's workers behind Dynamo's own front end: run by ``ci/vllm``."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import kvrt
from kvrt.runtime import Runtime

PYTHON = os.environ.get("PYTHON_WITH_VLLM", "")
pytestmark = [
    pytest.mark.extra,
    pytest.mark.skipif(not PYTHON, reason="PYTHON_WITH_VLLM names none: see ci/vllm"),
]

TINY = Path(kvrt.__file__).parent / "model" / "bundled" / "tiny"
TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
OPTIONS = json.dumps({"backend": "cpu", "memory_limit": "128MiB", "threads": 1})


class Dynamo(NamedTuple):
    port: int
    workers: list["subprocess.Popen[bytes]"]
    logs: Path

    def ask(self, prompt: str, **fields: object) -> dict[str, Any]:
        body = {"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": 24, **fields}
        answer: dict[str, Any] = json.loads(self.post("/v1/completions", body))
        return answer

    def post(self, path: str, body: object) -> bytes:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=60) as answer:
            said: bytes = answer.read()
        return said

    def models(self) -> str:
        url = f"http://127.0.0.1:{self.port}/v1/models"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read())
        return ""


@pytest.fixture(scope="module")
def dynamo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dynamo]:
    folder = tmp_path_factory.mktemp("dynamo")
    model = shutil.copytree(TINY, folder / "tiny")
    config = model / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": TEMPLATE}))
    env = os.environ | {
        "DYN_FILE_KV": str(folder / "store"), "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_DISCOVERY_BACKEND": "file",
    }  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    front = (
        "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port),
        "--discovery-backend", "file", "--router-mode", "kv", "--no-interactive",
        "--router-min-initial-workers", "2",
    )  # fmt: skip
    worker = (
        "kvrt.integrations.dynamo", str(model), "--served-model-name", "tiny",
        "--options", OPTIONS,
    )  # fmt: skip
    processes = []
    for number, arguments in enumerate((front, worker, worker)):
        with (folder / f"log{number}").open("w") as log:
            processes.append(
                subprocess.Popen([PYTHON, "-m", *arguments], env=env, stdout=log, stderr=log)
            )
    started = Dynamo(port, processes[1:], folder)
    try:
        end = time.monotonic() + 180
        while '"tiny"' not in started.models():
            assert time.monotonic() < end, (folder / "log1").read_text()[-2000:]
            time.sleep(0.2)
        yield started
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_the_text_is_the_runtimes(dynamo: Dynamo) -> None:
    prompt = "def read_lines(path):"
    with Runtime("tiny", backend="cpu", memory_limit="64MiB") as runtime:
        right = runtime.generate(prompt, kvrt.SamplingParams(max_tokens=24))[0]
    answer = dynamo.ask(prompt)
    assert answer["choices"][0]["text"] == right.text
    assert answer["usage"]["completion_tokens"] == len(right.token_ids)


def test_a_conversation_goes_where_its_pages_are(dynamo: Dynamo) -> None:
    """By chance, eight of them would all find theirs one time in 256."""
    for number in range(8):
        prompt = f"# the file of number {number}\n" + "def read_lines(path):\n    return path\n" * 8
        first = dynamo.ask(prompt)
        time.sleep(0.3)  # the front end hears of pages
        again = dynamo.ask(prompt + first["choices"][0]["text"])
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= 64


def test_a_chat_streams(dynamo: Dynamo) -> None:
    body = {
        "model": "tiny", "messages": [{"role": "user", "content": "def add(a, b):"}],
        "max_tokens": 8, "temperature": 0, "stream": True,
    }  # fmt: skip
    lines = dynamo.post("/v1/chat/completions", body).decode().split("\n\n")
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert len(events) > 4


def test_what_is_not_offered_is_refused_by_its_name(dynamo: Dynamo) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        dynamo.ask("x", n=2, temperature=1)
    with caught.value as answer:
        assert answer.code == 400
        assert b"n is not offered by this worker" in answer.read()


def test_a_worker_that_is_told_to_end_does(dynamo: Dynamo) -> None:
    for process in dynamo.workers:
        process.send_signal(signal.SIGTERM)
    for process in dynamo.workers:
        assert process.wait(60) == 0
