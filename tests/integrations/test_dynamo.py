"""Dynamo's own indexer, told of kvrt's pages by kvrt's events: run by ``ci/vllm``."""

import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kvrt
from kvrt.integrations.events import EventPublisher
from kvrt.runtime import Runtime

PYTHON = os.environ.get("PYTHON_WITH_VLLM", "")
pytestmark = [
    pytest.mark.extra,
    pytest.mark.skipif(not PYTHON, reason="PYTHON_WITH_VLLM names none: see ci/vllm"),
]

SHORT = kvrt.SamplingParams(max_tokens=2)
PROMPT = "def read_lines(path):\n    return open(path).readlines()\n" * 6


class Indexer:
    """One process, which listens at a port."""

    def __init__(self, port: int) -> None:
        self.port = port

    def post(self, path: str, body: object) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            head = {"Content-Type": "application/json"}
            connection.request("POST", path, json.dumps(body), head)
            answer = connection.getresponse()
            text = answer.read().decode()
            assert answer.status < 300, text
            return json.loads(text)
        finally:
            connection.close()

    def cached(self, tokens: list[int]) -> int:
        """How many tokens at the beginning it takes to be cached by the runtime."""
        found = self.post("/query", {"token_ids": tokens, "model_name": "tiny"})
        return int(found["scores"].get("1", {}).get("0", 0))


@pytest.fixture
def indexer(tmp_path: Path) -> Iterator[Indexer]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [PYTHON, "-m", "dynamo.indexer", "--port", str(port), "--threads", "1"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            until(lambda: listens(port))
            yield Indexer(port)
        finally:
            process.kill()
            process.wait()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_dynamos_indexer_finds_what_is_cached_and_nothing_else(indexer: Indexer) -> None:
    with (
        Runtime("tiny", backend="cpu", memory_limit="64MiB") as runtime,
        EventPublisher("tcp://127.0.0.1:0", replay="tcp://127.0.0.1:0") as publisher,
    ):
        publisher.follow(runtime)
        size = runtime.config.page_size
        tokens = list(runtime.generate(PROMPT, SHORT)[0].prompt_token_ids)
        whole = len(tokens) // size * size
        place = {"endpoint": publisher.endpoint, "replay_endpoint": publisher.replay}
        indexer.post(
            "/register", {"instance_id": 1, "model_name": "tiny", "block_size": size, **place}
        )
        asked = 0

        def known() -> bool:  # it asks for what it missed when it hears of the next event
            nonlocal asked
            asked += 1
            runtime.generate(f"{asked:04} is the number of a prompt that nobody had", SHORT)
            return indexer.cached(tokens) == whole

        until(known)
        assert indexer.cached(tokens[: 2 * size] + [7] * size) == 2 * size
        assert indexer.cached([7] * size) == 0
        runtime.generate("a tenant's own, " * 20, SHORT, cache_salt="alice")
        runtime.invalidate()
        until(lambda: indexer.cached(tokens) == 0)
        runtime.generate(PROMPT, SHORT)
        until(lambda: indexer.cached(tokens) == whole)
