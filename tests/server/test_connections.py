"""Clients that stall, close half, read slowly or talk nonsense: each costs itself alone."""

import asyncio
import contextlib
import json
import random
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import uvicorn

from kvrt.aio.runtime import AsyncRuntime
from kvrt.runtime import Runtime
from kvrt.server.access.guard import Guard
from kvrt.server.app import make_app
from kvrt.server.config import ServerConfig
from kvrt.server.service import Service
from kvrt.server.wire import connection, http

from .conftest import PROMPT, Server, until
from .test_bad_input import canary

HEAD = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
BODY = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 1}).encode()
POST = (
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
    + str(len(BODY)).encode() + b"\r\n\r\n"
)  # fmt: skip


@contextlib.asynccontextmanager
async def listening(runtime: Runtime) -> AsyncIterator[int]:
    """A server in this process, whose times a test has shortened; its port."""
    service = Service(AsyncRuntime(runtime), ServerConfig())
    app = Guard(make_app(service), service.book, "127.0.0.1", None)
    server = uvicorn.Server(
        uvicorn.Config(app, http=connection.Connection, ws="none", lifespan="off", log_config=None)
    )
    with socket.create_server(("127.0.0.1", 0)) as bound:
        running = asyncio.create_task(server._serve([bound]))
        try:
            yield bound.getsockname()[1]
        finally:
            server.should_exit = True
            await running
            service.close()


@pytest.fixture
def runtime() -> Any:
    with Runtime("tiny", backend="cpu", memory_limit="256MiB") as runtime:
        yield runtime


async def said(port: int, *pieces: bytes, pause: float = 0.0, seconds: float = 30.0) -> bytes:
    """All that comes back until the server hangs up, for pieces sent with pauses between."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def send() -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)

    with contextlib.closing(writer):
        sending = asyncio.create_task(send())
        async with asyncio.timeout(seconds):
            found = await reader.read()
        with contextlib.suppress(ConnectionError):
            await sending
    return found


@pytest.mark.promise("P26")
def test_headers_that_never_end_are_given_up(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.5)

    async def scene() -> None:
        async with listening(runtime) as port:
            assert await said(port) == b"", "who says nothing is told nothing"
            for part in (b"G", HEAD, POST[:-2], HEAD + b"X: " + b"a" * 10_000):
                found = await said(port, part)
                assert found.split()[1] == b"408", part
            dripping = [HEAD[n : n + 1] for n in range(len(HEAD))]
            assert (await said(port, *dripping, pause=0.1)).split()[1] == b"408"
            found = await said(port, HEAD + b"\r\n", HEAD, pause=0.1)
            assert found.count(b"HTTP/1.1 ") == 2, "the next request of a connection, too"
            assert found.split(b"HTTP/1.1 ")[2][:3] == b"408"

    asyncio.run(scene())


def test_a_body_that_comes_late_and_a_connection_that_rests_are_no_stalled_headers(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.6)

    async def scene() -> None:
        async with listening(runtime) as port:
            last = HEAD + b"Connection: close\r\n\r\n"
            found = await said(port, POST, BODY, HEAD + b"\r\n", last, pause=1.1)
            assert [part[:3] for part in found.split(b"HTTP/1.1 ")[1:]] == [b"200"] * 3

    asyncio.run(scene())


def test_a_stream_that_has_nothing_to_say_says_that_it_is_there(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "SILENCE_S", 0.1)
    go = threading.Event()
    fields = {"model": "tiny", "prompt": PROMPT, "max_tokens": 3, "stream": True}
    body = json.dumps(fields).encode()
    head = POST.replace(str(len(BODY)).encode(), str(len(body)).encode())
    head = head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")

    async def scene() -> None:
        async with listening(runtime) as port:
            held = asyncio.create_task(asyncio.to_thread(runtime._worker.call, go.wait))
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.closing(writer):
                writer.write(head + body)
                async with asyncio.timeout(30):
                    for _ in range(3):
                        await reader.readuntil(http.COMMENT)
                    go.set()
                    found = await reader.read()
            assert b"data: [DONE]" in found
            assert found.rstrip().endswith(b"0"), "nothing comes after the end"
            await held

    try:
        asyncio.run(scene())
    finally:
        go.set()


def odd_client(server: Server, seed: int, wanted: bytes) -> None:
    """One connection, in one of many ways."""
    rng = random.Random(seed)
    good = rng.random() < 0.4
    stream = rng.random() < 0.5
    fields = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12 if good else 400,
              "temperature": 0, "ignore_eos": True, "stream": stream}  # fmt: skip
    body = json.dumps(fields).encode()
    extra = b"" if good else b"X-Long: " + b"y" * rng.choice([1, 5_000, 60_000, 200_000]) + b"\r\n"
    data = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + extra
        + b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
    )  # fmt: skip
    if not good and rng.random() < 0.5:  # cut, or with nonsense in it
        place = rng.randrange(len(data))
        data = data[:place] + rng.choice([b"", rng.randbytes(rng.randrange(1, 50)) + data[place:]])
    with socket.create_connection(("127.0.0.1", server.port), 60) as connection:
        with contextlib.suppress(OSError):  # it may be refused before all is sent
            for cut in (rng.choice([1, 7, 100]) for _ in range(rng.randrange(10))):
                connection.sendall(data[:cut])
                data = data[cut:]
            connection.sendall(data)
        if good:
            found = b""
            while piece := connection.recv(rng.choice([1, 100, 65_536])):
                found += piece
            assert found.split()[1] == b"200"
            lines = [line[6:] for line in found.splitlines() if line.startswith(b"data: {")]
            text = "".join(json.loads(line)["choices"][0]["text"] for line in lines)
            if not stream:
                text = json.loads(found.partition(b"\r\n\r\n")[2])["choices"][0]["text"]
            assert text.encode() == wanted
            return
        connection.settimeout(rng.choice([0.01, 0.3]))
        with contextlib.suppress(OSError):
            match rng.randrange(4):
                case 0:  # resets
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                case 1:  # closes its half, and listens
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(10):
                        pass
                case 2:  # reads a little, slowly
                    for _ in range(10):
                        connection.recv(1)
                        time.sleep(0.01)
                case _:  # closes at once
                    pass


@pytest.mark.promise("P14", "P26", "P27")
@pytest.mark.parametrize("count", [100, pytest.param(5_000, marks=pytest.mark.extra)])
def test_whatever_connections_do_others_are_answered_and_nothing_stays_behind(
    server: Server, count: int
) -> None:
    wanted = server.post(
        "/v1/completions",
        {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "ignore_eos": True},
    )[1]["choices"][0]["text"].encode()
    process = psutil.Process(server.process.pid)
    until(lambda: server.used_pages == 0)
    before = process.num_fds()
    with canary(server), ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda seed: odd_client(server, seed, wanted), range(count)))
    until(lambda: server.used_pages == 0)
    until(lambda: process.num_fds() <= before + 1)
    assert "Traceback" not in server.said()
