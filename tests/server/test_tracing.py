"""Spans, as a real collector gets them."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from .conftest import Serve, until

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "a-very-secret-word"
TEXT = "/v1/completions"
ASK: dict[str, Any] = {"model": "tiny", "prompt": SECRET, "max_tokens": 4, "ignore_eos": True}


class Collector:
    """Takes what is exported."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()

    @property
    def spans(self) -> list[tuple[dict[str, Any], Any]]:
        """Each with the attributes of the service it is of."""
        found = []
        for body in self.bodies:
            for each in ExportTraceServiceRequest.FromString(body).resource_spans:
                service = plain(each.resource.attributes)
                found += [(service, span) for scope in each.scope_spans for span in scope.spans]
        return found

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


def plain(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    one = Collector()
    yield one
    one.close()


@pytest.mark.promise("P41")
def test_each_request_is_a_span_of_its_callers_trace(serve: Serve, collector: Collector) -> None:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    server = serve("--otel", env=env)
    parent = {"traceparent": f"00-{TRACE}-{SPAN}-01", "x-request-id": "mine"}
    assert server.post(TEXT, ASK, headers=parent)[0] == 200
    assert server.post(TEXT, {**ASK, "n": SECRET})[0] == 400
    assert server.post(TEXT, ASK, headers={"traceparent": "nonsense"})[0] == 200
    messages = [{"role": "user", "content": SECRET}]
    chat = {"model": "tiny", "messages": messages, "max_tokens": 4, "stream": True}
    assert server.ask("POST", "/v1/chat/completions", chat)[0] == 200
    until(lambda: len(collector.spans) == 3)
    (service, first), (_, second), (_, third) = collector.spans
    assert service["service.name"] == "kvrt"
    assert first.name == "text_completion tiny"
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (TRACE, SPAN)
    told = plain(first.attributes)
    assert told["gen_ai.usage.output_tokens"] == 4
    assert told["gen_ai.usage.input_tokens"] > 3
    assert told["http.route"] == TEXT
    assert told["http.response.status_code"] == 200
    assert told["kvrt.request_id"] == "mine"
    (event,) = first.events
    assert event.name == "first token"
    assert first.start_time_unix_nano < event.time_unix_nano <= first.end_time_unix_nano
    assert second.trace_id.hex() != TRACE
    assert third.name == "chat tiny"
    assert server.end() == 0
    assert not any(SECRET.encode() in body for body in collector.bodies)


def test_what_has_not_been_sent_is_sent_at_the_end(serve: Serve, collector: Collector) -> None:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "600000",
           "OTEL_SERVICE_NAME": "mine"}  # fmt: skip
    server = serve("--otel", env=env)
    assert server.post(TEXT, ASK)[0] == 200
    assert not collector.spans
    assert server.end() == 0
    ((service, _),) = collector.spans
    assert service["service.name"] == "mine"


def test_a_collector_that_is_gone_keeps_nobody_waiting(serve: Serve) -> None:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    server = serve("--otel", env=env)
    for _ in range(20):
        assert server.post(TEXT, ASK)[0] == 200
    assert server.ask("GET", "/readyz")[0] == 200
    begun = time.monotonic()
    assert server.end() == 0
    assert time.monotonic() - begun < 20


def test_the_extra_is_named_if_it_is_missing() -> None:
    hide = ("import sys; sys.modules['opentelemetry.sdk'] = None;"
            " from kvrt_cli.main import main; main()")  # fmt: skip
    command = [sys.executable, "-c", hide, "serve", "/no/such/model", "--port", "0", "--otel"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "pip install 'kvrt[otel]'" in result.stderr
