"""A WebSocket says what HTTP says, by the same rules."""

import itertools
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Ping, RejectConnection, TextMessage
from wsproto.events import Request as Handshake

from kvrt.server.access.keys import add_key

from .clients import ROUTES, asked
from .conftest import PROMPT, Serve, Server, until

TEXT = "/v1/completions"
SMALL = {"model": "tiny", "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "ignore_eos": True}


class Client:
    """One connection."""

    def __init__(self, server: Server, path: str, headers: list[tuple[bytes, bytes]]) -> None:
        self.connection = socket.create_connection(("127.0.0.1", server.port), 60)
        self.protocol = WSConnection(ConnectionType.CLIENT)
        shake = Handshake(host="localhost", target=path, extra_headers=headers)
        self.connection.sendall(self.protocol.send(shake))
        self.events = self._read()
        self.first = next(self.events)

    def _read(self) -> Iterator[Any]:
        while True:
            for event in self.protocol.events():
                if isinstance(event, Ping):
                    self.connection.sendall(self.protocol.send(event.response()))
                else:
                    yield event
            data = self.connection.recv(65536)
            self.protocol.receive_data(data or None)

    def say(self, body: object) -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        self.connection.sendall(self.protocol.send(TextMessage(data=text)))

    def hear(self) -> str:
        """The next message, whole."""
        found = ""
        for event in self.events:
            assert isinstance(event, TextMessage), event
            found += event.data
            if event.message_finished:
                return found
        raise AssertionError("the connection ended")

    def answer(self) -> list[Any]:
        """All events of an answer; an error is the last of them."""
        found = []
        while (text := self.hear()) != "[DONE]":
            found.append(json.loads(text))
            if "error" in found[-1]:
                break
        return found


@contextmanager
def connected(
    server: Server, path: str = TEXT, key: str = "", origin: str = ""
) -> Iterator[Client]:
    headers = [(b"Authorization", f"Bearer {key}".encode())] if key else []
    headers += [(b"Origin", origin.encode())] if origin else []
    client = Client(server, path, headers)
    try:
        yield client
    finally:
        client.connection.close()


@pytest.mark.parametrize("route", ROUTES)
def test_each_route_says_the_events_of_its_stream(server: Server, route: str) -> None:
    body = asked(route, PROMPT, 8, stream=True)
    body.get("options", body)["temperature"] = 0
    _, _, found = server.ask("POST", route, body)
    lines = [line.removeprefix(b"data: ") for line in found.splitlines() if b"{" in line]
    over_http = [json.loads(line) for line in lines]
    with connected(server, route) as client:
        assert isinstance(client.first, AcceptConnection)
        client.say({**body, "stream": False})
        over_socket = client.answer()
    assert kinds(over_socket) == kinds(over_http)
    assert said(over_socket) == said(over_http) != ""


def kinds(events: list[Any]) -> list[Any]:
    """What events there are, in order, each once: a slow reader finds several pieces as one."""
    forms = [(event.get("type"), event.get("done"), sorted(event)) for event in events]
    return [form for form, _ in itertools.groupby(forms)]


def said(events: list[Any]) -> str:
    """What pieces say."""

    def of(event: Any) -> str:
        if isinstance(event.get("delta"), str):  # of responses
            return event["delta"]
        inner = [event, *event.get("choices", ())]
        inner += [each.get("delta") or each.get("message") or {} for each in inner]
        keys = ("text", "content", "response")
        found = [each.get(key) for each in inner for key in keys]
        return "".join(each for each in found if isinstance(each, str))

    return "".join(map(of, events))


def test_requests_follow_each_other_and_a_bad_one_ends_nothing(server: Server) -> None:
    with connected(server) as client:
        for _ in range(2):
            client.say(SMALL)
            client.say({**SMALL, "n": "two"})
            client.say("{nonsense")
        for _ in range(2):
            good = client.answer()
            assert sum(len(each["choices"]) for each in good) > 0
            assert client.answer()[-1]["error"]["param"] == "n"
            assert client.answer()[-1]["error"]["code"] == "invalid_json"


@pytest.mark.promise("P14")
def test_a_client_that_goes_ends_its_request(server: Server) -> None:
    until(lambda: server.used_pages == 0)
    before = server.metrics().get("kvrt_requests_total,outcome=abort", 0)
    with connected(server) as client:
        client.say({**SMALL, "max_tokens": 900})
        client.hear()
    until(lambda: server.metrics().get("kvrt_requests_total,outcome=abort", 0) == before + 1)
    until(lambda: server.used_pages == 0)


def test_who_sends_more_and_more_without_listening_is_hung_up_on(server: Server) -> None:
    with connected(server) as client:
        for _ in range(40):
            client.say({**SMALL, "max_tokens": 900})
        for event in client.events:
            if isinstance(event, CloseConnection):
                break
        assert event.code == 1008
    until(lambda: server.used_pages == 0)


@pytest.mark.promise("P28")
def test_a_connection_needs_what_a_request_needs(serve: Serve, tmp_path: Any) -> None:
    path = tmp_path / "keys"
    keys = {role: add_key(path, role, role) for role in ("user", "metrics")}
    server = serve("--keys", str(path), "--limit", "requests=1")
    for key, status in (("", 401), ("wrong", 401), (keys["metrics"], 403)):
        with connected(server, key=key) as client:
            assert isinstance(client.first, RejectConnection)
            assert client.first.status_code == status
    with connected(server, key=keys["user"]) as client:
        client.say(SMALL)
        assert "error" not in client.answer()[-1]
        client.say(SMALL)
        assert client.answer()[-1]["error"]["code"] == "rate_limit_exceeded"
    with connected(server, "/nothing", keys["user"]) as client:
        assert isinstance(client.first, RejectConnection)


@pytest.mark.promise("P28")
def test_no_page_of_another_site_connects(server: Server) -> None:
    for origin, taken in (("http://localhost:1", True), ("https://evil.example", False)):
        with connected(server, origin=origin) as client:
            assert isinstance(client.first, AcceptConnection) == taken
