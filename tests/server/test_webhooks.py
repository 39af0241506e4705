"""Webhooks of batches, taken by a real HTTP server and OpenAI's own client."""

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from click.testing import CliRunner
from kvrt_cli.main import cli

from kvrt.batches.deliveries import DELAYS_S
from kvrt.batches.store import Store
from kvrt.errors import ConfigError
from kvrt.server.batches import webhooks
from kvrt.server.batches.webhooks import Hook, Webhooks
from kvrt.server.config import ServerConfig
from tests.batches.inputs import Echo, entered, many, runner, write

from .conftest import Serve, until
from .test_batches import asked, begin, ended

SECRET = "whsec_" + base64.b64encode(b"not a secret, but as long as one").decode()


class Taker:
    """Where webhooks are posted, and what was."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, dict[str, str]]] = []
        self.status = 200
        taker = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                taker.taken.append((body, dict(self.headers)))
                self.send_response(taker.status)
                self.send_header("location", "http://127.0.0.1:1/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()


@pytest.fixture
def taker() -> Iterator[Taker]:
    one = Taker()
    yield one
    one.server.shutdown()
    one.thread.join()
    one.server.server_close()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    return path


def test_the_end_of_a_batch_is_told_to_whom_the_operator_has_named(
    serve: Serve, taker: Taker, secret: Path, tmp_path: Path
) -> None:
    server = serve("--batches", str(tmp_path / "state"), "--batch-webhook", taker.url,
                   "--batch-webhook-secret", str(secret))  # fmt: skip
    with server.client(webhook_secret=SECRET) as client:
        good, bad = begin(client, [asked("a")]), begin(client, [asked("a"), asked("a")])
        ended(client, good)
        ended(client, bad)
        until(lambda: len(taker.taken) == 2)
        events = [client.webhooks.unwrap(body, headers) for body, headers in taker.taken]
        told: Any = {event.type: event.data for event in events}
        assert (told["batch.completed"].id, told["batch.failed"].id) == (good, bad)
        body, headers = taker.taken[0]
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.unwrap(body.replace("batch.", "other."), headers)


class Clock:
    now = 1_000_000

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("status", [500, 302, 404])
def test_what_is_not_taken_is_posted_again_and_is_a_dead_letter_in_the_end(
    taker: Taker, secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(webhooks, "LOOK_S", 0.001)
    clock = Clock()
    taker.status = status
    store = Store(tmp_path / "state", clock, tells=True)
    batch = entered(store, many(tmp_path / "in.jsonl", 3))
    asyncio.run(runner(store, Echo()).run(batch.id))

    async def posted(times: int) -> None:
        """Let it go on, until so many have come and were dealt with."""
        task = asyncio.create_task(Webhooks(store, Hook.read(taker.url, secret)).deliver())
        while len(taker.taken) < times or await store.do(store.deliveries.due, 1):
            await asyncio.sleep(0.001)
        task.cancel()

    for number, delay in enumerate([0, *DELAYS_S]):
        clock.now += delay
        assert len(store.deliveries.due(9)) == 1
        asyncio.run(posted(number + 1))
    assert len({json.loads(body)["id"] for body, _ in taker.taken}) == 1
    clock.now += 10**6
    assert not store.deliveries.due(9)
    (letter,) = store.deliveries.dead()
    assert letter.tries == len(DELAYS_S) + 1
    found = CliRunner().invoke(cli, ["batch", "letters", str(tmp_path / "state"), "--again"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["data"]["id"] == batch.id
    taker.status, clock.now = 200, 2**40
    asyncio.run(posted(len(DELAYS_S) + 2))
    assert not store.deliveries.dead()
    store.close()


@pytest.mark.promise("P32")
@pytest.mark.parametrize("url", ["http://example.com/x", "ftp://127.0.0.1/x", "file:///x", "x"])
def test_webhooks_go_nowhere_where_others_read_them(url: str, secret: Path) -> None:
    with pytest.raises(ConfigError, match="https"):
        Hook.read(url, secret)


def test_a_secret_that_is_none_is_refused(tmp_path: Path) -> None:
    for text in ("", "whsec_?", "whsec_", "\u00e4"):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(ConfigError, match="secret"):
            Hook.read("https://example.com", tmp_path / "bad")
    with pytest.raises(ConfigError, match="secret"):
        Hook.read("https://example.com", tmp_path / "missing")
    with pytest.raises(ConfigError, match="go together"):
        ServerConfig(batch_webhook="https://example.com")
    with pytest.raises(ConfigError, match="of no use without batches"):
        ServerConfig(batch_webhook="https://example.com", batch_webhook_secret=tmp_path / "x")


def test_a_folder_that_is_none_has_no_letters(tmp_path: Path) -> None:
    found = CliRunner().invoke(cli, ["batch", "letters", str(write(tmp_path / "x", []).parent)])
    assert found.exit_code == 2
    assert "no folder of batches" in found.stderr
