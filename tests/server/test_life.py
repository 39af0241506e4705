"""From the first connection to the last: load, clients that leave, engines that hang, the end."""

import asyncio
import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kvrt.aio.runtime import AsyncRuntime
from kvrt.errors import KvrtError
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.server.config import ServerConfig
from kvrt.server.service import Service

from .conftest import PROMPT, Serve, Server, until

LONG: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "max_tokens": 900, "ignore_eos": True}


def rest_of(connection: Any) -> bytes:
    connection.settimeout(60)
    found = b""
    while piece := connection.recv(65536):
        found += piece
    connection.close()
    return found


@pytest.mark.promise("P14")
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_costs_nothing_a_second_later(server: Server, stream: bool) -> None:
    before = server.metrics().get("kvrt_requests_total,outcome=abort", 0)
    fields = {"n": 4, "temperature": 1.0}
    if stream:
        server.open_stream(**fields).close()
    else:
        with pytest.raises(TimeoutError):
            server.ask("POST", "/v1/completions", {**LONG, **fields}, timeout=0.3)
    left = time.monotonic()
    until(lambda: server.metrics().get("kvrt_requests_total,outcome=abort", 0) == before + 1)
    until(lambda: server.used_pages == 0)
    assert time.monotonic() - left < 5, "a second, on a machine that has the time"


def test_a_client_that_takes_nothing_stalls_nobody(server: Server) -> None:
    deaf = [server.open_stream(logprobs=20, n=4) for _ in range(3)]
    status, answer = server.post("/v1/completions", {**LONG, "max_tokens": 50})
    assert status == 200
    assert answer["usage"]["completion_tokens"] == 50
    for connection in deaf:
        connection.close()
    until(lambda: server.used_pages == 0)


def test_more_than_there_is_room_for_is_told_when_to_come_again(serve: Serve) -> None:
    server = serve("--max-requests", "2")
    held = [server.open_stream() for _ in range(2)]
    status, headers, body = server.ask("POST", "/v1/completions", LONG)
    assert status == 429
    assert 1 <= int(headers["retry-after"]) <= 60
    assert json.loads(body)["error"]["code"] == "rate_limit_exceeded"
    assert server.ask("GET", "/readyz")[0] == 200
    status, answer = server.post("/v1/completions", {**LONG, "n": 3, "temperature": 1.0})
    assert (status, answer["error"]["param"]) == (400, "n"), "it will never fit"
    held.pop().close()
    until(lambda: server.post("/v1/completions", {**LONG, "max_tokens": 1})[0] == 200)
    assert b"[DONE]" in rest_of(held.pop())


@pytest.mark.promise("P40")
def test_metrics_equal_what_was_answered(server: Server) -> None:
    until(lambda: server.metrics()["kvrt_sequences,state=running"] == server.used_pages == 0)
    before = server.metrics()
    totals = dict.fromkeys(["prompt_tokens", "completion_tokens", "cached"], 0)
    with ThreadPoolExecutor(4) as pool:
        bodies = [{**LONG, "max_tokens": 3 + n, "prompt": PROMPT * (n % 3 + 1)} for n in range(12)]
        for status, answer in pool.map(lambda body: server.post("/v1/completions", body), bodies):
            assert status == 200
            for name in ("prompt_tokens", "completion_tokens"):
                totals[name] += answer["usage"][name]
            totals["cached"] += answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    server.post("/v1/completions", {"model": "tiny"})
    after = server.metrics()
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown["kvrt_prompt_tokens_total"] == totals["prompt_tokens"]
    assert grown["kvrt_generated_tokens_total"] == totals["completion_tokens"]
    assert grown["kvrt_cached_prompt_tokens_total"] == totals["cached"]
    assert grown["kvrt_requests_total,outcome=length"] == 12
    assert grown["kvrt_http_requests_total,route=/v1/completions,status=200"] == 12
    assert grown["kvrt_http_requests_total,route=/v1/completions,status=400"] == 1
    assert grown["kvrt_request_seconds_count"] == 12
    assert grown["kvrt_time_to_first_token_seconds_count"] == 12
    assert after["kvrt_kv_pages,state=used"] == 0
    assert after["kvrt_sequences,state=running"] == after["kvrt_sequences,state=waiting"] == 0
    counters = [name for name in after if name.partition(",")[0].endswith(("_total", "_count"))]
    assert all(after[name] >= before.get(name, 0) for name in counters)


@pytest.mark.promise("P35")
def test_sigterm_lets_answers_end_and_takes_no_more(serve: Serve) -> None:
    server = serve("--drain-seconds", "60")
    streams = [server.open_stream(max_tokens=300) for _ in range(8)]
    server.process.send_signal(signal.SIGTERM)

    def refuses() -> bool:
        try:
            return server.ask("GET", "/livez", timeout=5)[0] != 200
        except OSError:
            return True

    until(refuses)
    for connection in streams:
        assert b"[DONE]" in rest_of(connection)
    assert server.process.wait(60) == 0
    assert "Traceback" not in server.said()


@pytest.mark.promise("P35")
def test_at_the_deadline_streams_end_with_an_error_event(serve: Serve) -> None:
    server = serve("--drain-seconds", "0.2")
    streams = [server.open_stream(n=4, temperature=1.0) for _ in range(8)]
    begun = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    for connection in streams:
        found = rest_of(connection)
        assert b"[DONE]" not in found
        last = [line for line in found.splitlines() if line.startswith(b"data:")][-1]
        assert json.loads(last[5:])["error"]["code"] == "shutting_down"
        assert found.rstrip().endswith(b"0"), "the body itself is whole"
    assert server.process.wait(60) == 0
    assert time.monotonic() - begun < 30
    assert "Traceback" not in server.said()


@pytest.mark.promise("P35")
def test_a_second_sigterm_ends_it_at_once(serve: Serve) -> None:
    server = serve("--drain-seconds", "600")
    with server.open_stream():
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert server.process.poll() is None, "the first lets the stream go on"
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == -signal.SIGTERM


@pytest.fixture
def stuck() -> Iterator[tuple[Any, threading.Event]]:
    """A service whose engine can be kept from going on, in this process."""
    go = threading.Event()
    with Runtime("tiny", backend="cpu", memory_limit="256MiB") as runtime:
        yield runtime, go
        go.set()


@pytest.mark.promise("P16", "P17")
def test_an_engine_that_stands_still_is_not_ready_and_recovers(stuck: Any) -> None:
    runtime, go = stuck

    async def scene() -> None:
        service = Service(AsyncRuntime(runtime), ServerConfig(ready_seconds=0.3))
        assert service.moves
        held = asyncio.create_task(asyncio.to_thread(runtime._worker.call, go.wait))
        asking = asyncio.create_task(service.runtime.generate(PROMPT, SamplingParams(max_tokens=4)))
        async with asyncio.timeout(30):
            while service.moves:
                await asyncio.sleep(0.02)
        assert b"kvrt_kv_pages" in service.metrics.text(), "metrics wait for nothing"
        go.set()
        assert len((await asking).token_ids) == 4
        await held
        assert service.moves
        service.close()

    asyncio.run(asyncio.wait_for(scene(), 60))


@pytest.mark.promise("P16")
def test_an_engine_that_has_stopped_is_neither_ready_nor_alive(stuck: Any) -> None:
    runtime, _ = stuck

    def fail() -> None:
        raise RuntimeError("the device is gone")

    async def scene() -> None:
        service = Service(AsyncRuntime(runtime), ServerConfig())
        assert service.lives
        assert service.moves
        runtime._worker.engine.step = fail
        with pytest.raises(KvrtError, match="the device is gone"):
            await service.runtime.generate(PROMPT)
        assert not service.lives
        assert not service.moves
        with pytest.raises(KvrtError, match="the device is gone"):
            await service.runtime.generate(PROMPT)

    asyncio.run(asyncio.wait_for(scene(), 60))


def test_what_has_not_ended_before_its_deadline_is_cut_waiting_or_not(serve: Serve) -> None:
    server = serve("--max-running", "1", "--deadline", "30")
    first = server.open_stream()
    status, told = server.post("/v1/completions", LONG, headers={"x-kvrt-deadline": "0.3"})
    assert (status, told["error"]["code"]) == (504, "deadline")
    assert b"[DONE]" in rest_of(first)
    for wrong in ("0", "-1", "soon", "inf", "1e3", ""):
        headers = {"x-kvrt-deadline": wrong}
        assert server.post("/v1/completions", LONG, headers=headers)[0] == 400


def test_a_stream_that_is_late_ends_with_an_error_event(serve: Serve) -> None:
    server = serve("--deadline", "0.5")
    said = rest_of(server.open_stream(n=16, temperature=1.0))
    assert b'"code":"deadline"' in said
    assert b"[DONE]" not in said
    until(lambda: server.used_pages == 0, 2)


def test_the_log_is_json_where_that_is_wanted_and_never_has_what_was_asked(serve: Serve) -> None:
    server = serve(env={"KVRT_LOG_LEVEL": "INFO", "KVRT_LOG_FORMAT": "json"})
    body = {"model": "tiny", "prompt": "a-very-secret-word", "max_tokens": 2}
    headers = {"x-request-id": "r-1"}
    assert server.post("/v1/completions", body, headers=headers)[0] == 200
    until(lambda: "r-1" in server.said())
    (told,) = (json.loads(line) for line in server.said().splitlines() if "r-1" in line)
    assert told.items() >= {"id": "r-1", "route": "/v1/completions", "status": 200}.items()
    assert 0 < told["seconds"] < 60
    assert "secret" not in server.said()
