"""A real `kvrt serve`, as a process of its own, and ways to ask it."""

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anthropic
import openai
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

PROMPT = 'def read_lines(path):\n    """'
MESSAGES: Any = [{"role": "user", "content": "Say something."}]
WATCHED = """
import sys
def watch(event, arguments):
    if event == "socket.connect":
        print("CONNECTS", arguments[1], file=sys.stderr, flush=True)
sys.addaudithook(watch)
from kvrt_cli.main import main
main()
"""
"""`kvrt`, which says if it connects to anything."""


ENVIRONMENT = {"KVRT_LOG_LEVEL": "INFO", "KVRT_PORT": "tcp://10.0.0.1:80", "KVRT_HOST": "0.0.0.0",
               "KVRT_SERVICE_PORT": "80"}  # fmt: skip
"""Of the shared server: a log, and what Kubernetes sets for a service of this name."""


@dataclass
class Server:
    """One process.

    Args:
        process: of `kvrt serve`.
        log: its standard error.
        port: where it listens.
        clients: made for it, whose connections end with it.
    """

    process: "subprocess.Popen[bytes]"
    log: Path
    port: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    clients: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> openai.OpenAI:
        usual = {"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0}
        return self.clients.enter_context(openai.OpenAI(**{**usual, **options}))

    def strict_client(self) -> openai.OpenAI:
        """One that refuses answers that are not as its types are."""
        return self.client(_strict_response_validation=True)

    def anthropics_client(self) -> anthropic.Anthropic:
        client = anthropic.Anthropic(base_url=self.url, api_key="none", max_retries=0)
        return self.clients.enter_context(client)

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
        timeout: float = 60,
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own: status, headers, body."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method, path, data, {**self.headers, **(headers or {})})
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return response.status, found, response.read()

    def post(self, path: str, body: object, **options: Any) -> tuple[int, Any]:
        status, _, data = self.ask("POST", path, body, **options)
        return status, json.loads(data)

    def raw(self, data: bytes, timeout: float = 30) -> bytes:
        """All that comes back for some bytes, until the server closes or says nothing more."""
        with socket.create_connection(("127.0.0.1", self.port), timeout) as connection:
            with contextlib.suppress(OSError):  # it may have refused before all was sent
                connection.sendall(data)
            found = b""
            with contextlib.suppress(OSError):
                while piece := connection.recv(65536):
                    found += piece
            return found

    def open_stream(self, **fields: Any) -> socket.socket:
        """A connection on which an answer has begun to come."""
        body = json.dumps(
            {"model": "tiny", "prompt": PROMPT, "max_tokens": 900, "ignore_eos": True,
             "stream": True, **fields}
        ).encode()  # fmt: skip
        connection = socket.create_connection(("127.0.0.1", self.port), 30)
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
            + str(len(body)).encode() + b"\r\nConnection: close\r\n"
            + "".join(f"{name}: {value}\r\n" for name, value in self.headers.items()).encode()
            + b"\r\n" + body
        )  # fmt: skip
        found = b""
        while b"data:" not in found:
            piece = connection.recv(65536)
            assert piece, found
            found += piece
        return connection

    def metrics(self) -> dict[str, float]:
        """Each sample, by its name and labels."""
        text = self.ask("GET", "/metrics")[2].decode()
        return {
            sample.name
            + "".join(f",{k}={v}" for k, v in sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    @property
    def used_pages(self) -> float:
        return self.metrics()["kvrt_kv_pages,state=used"]

    @property
    def rss(self) -> int:
        return psutil.Process(self.process.pid).memory_info().rss

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(60)

    def said(self) -> str:
        return self.log.read_text(errors="replace")


Serve = Callable[..., Server]


def until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def launch(
    log: Path, *args: str, env: dict[str, str] | None = None, command: str = "serve"
) -> Server:
    command_line = [sys.executable, "-c", WATCHED, command, *args]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command_line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file,
            env={**os.environ, **(env or {})},
        )  # fmt: skip
    return Server(process, log)


@contextmanager
def started(
    folder: Path, *args: str, env: dict[str, str] | None = None, model: str = "tiny"
) -> Iterator[Server]:
    """A server, from when it listens; the bundled model is given a chat template."""
    log = folder / "log"
    template = ("--chat-template", "plain") if model == "tiny" else ()
    server = launch(log, model, "--backend", "cpu", "--port", "0", *template, *args, env=env)
    with listening(server):
        yield server


@contextmanager
def listening(server: Server) -> Iterator[None]:
    """From when it listens; it is killed in the end."""
    try:
        address = re.compile(r"(?:serving|routing) at http://[\d.]+:(\d+)")

        def listens() -> bool:
            assert server.process.poll() is None, server.said()
            return address.search(server.said()) is not None

        until(listens, 120)
        found = address.search(server.said())
        assert found is not None
        server.port = int(found[1])
        yield
    finally:
        server.clients.close()
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait(60)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests that leave it as it was."""
    with started(tmp_path_factory.mktemp("server"), env=ENVIRONMENT) as one:
        yield one


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Servers of a test's own."""
    with contextlib.ExitStack() as stack:

        def start(*args: str, **options: Any) -> Server:
            folder = tmp_path / str(len(list(tmp_path.iterdir())))
            folder.mkdir()
            return stack.enter_context(started(folder, *args, **options))

        yield start
