"""Streams that go on at another server while their own is left out, unnoticed by clients."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvrt.routing.ways import Events
from kvrt.server.access.keys import add_key
from kvrt.server.moving import Told, event_of
from tests.routing.conftest import Route, replicas
from tests.server.conftest import MESSAGES, PROMPT, Server, started, until
from tests.tiers.elsewhere import served

LONG = 600
ASKED: dict[str, Any] = {"prompt": PROMPT, "max_tokens": LONG, "ignore_eos": True, "stream": True,
         "temperature": 0.8, "seed": 5, "presence_penalty": 0.2}  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Two servers that share pages."""
    folders = [tmp_path_factory.mktemp(name) for name in "ab"]
    with served(key=b"") as address:
        args = ("--remote-store", str(address), "--preemption", "move")
        with started(folders[0], *args) as one, started(folders[1], *args) as two:
            yield [one, two]


def rest(connection: socket.socket) -> bytes:
    """All that comes until the end of an answer."""
    found = b""
    while piece := connection.recv(65536):
        found += piece
    return found


def events(body: bytes) -> list[Any]:
    """Of a stream, as its client reads it."""
    lines = re.findall(rb"^data: (.*)$", body, re.MULTILINE)
    assert lines[-1] == b"[DONE]", lines[-3:]
    return [json.loads(line) for line in lines[:-1]]


def moved(router: Server, **fields: Any) -> list[Any]:
    """The events of a stream whose server is left out as soon as it has begun."""
    body = json.dumps({"model": "tiny", **ASKED, **fields}).encode()
    with socket.create_connection(("127.0.0.1", router.port), 30) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            + "".join(f"{name}: {value}\r\n" for name, value in router.headers.items()).encode()
            + b"Content-Length: %d\r\n\r\n" % len(body) + body
        )  # fmt: skip
        found = b""
        while found.count(b"data:") < 3:
            found += connection.recv(65536)
        who = re.search(rb"x-kvrt-replica: (\w+)", found)
        assert who is not None
        assert router.ask("DELETE", f"/replicas/{who[1].decode()}")[0] == 202
        return _dechunked(found + rest(connection))


def _dechunked(answer: bytes) -> list[Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"chunked" in head.lower()
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        whole += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    assert b"kvrt-moved" not in whole
    return events(whole)


def text(found: list[Any]) -> str:
    assert len({event["id"] for event in found}) == 1
    assert len({event["created"] for event in found}) == 1
    return "".join(event["choices"][0]["text"] for event in found if event["choices"])


@pytest.mark.promise("P44")
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="sampled"),
        pytest.param({"regex": "([a-z]+ )+"}, id="pattern"),
        pytest.param({"temperature": 0, "stop": ["\x07"]}, id="greedy", marks=pytest.mark.extra),
        pytest.param(
            {"stream_options": {"include_usage": True}, "echo": True},
            id="echo",
            marks=pytest.mark.extra,
        ),
    ],
)
def test_a_stream_goes_on_at_the_other_server_with_the_same_text(
    pair: list[Server], route: Route, fields: dict[str, Any]
) -> None:
    body = {"model": "tiny", **ASKED, **fields}
    alone = events(pair[0].ask("POST", "/v1/completions", body)[2])
    router = route(*(server.url for server in pair))
    found = moved(router, **fields)
    assert text(found) == text(alone)
    assert found[-1]["choices"] or found[-1]["usage"]["completion_tokens"] == LONG
    left = replicas(router)
    assert [each["requests"] for each in left] == [1], "it did not move"
    assert left[0]["failed"] == 0


@pytest.mark.promise("P44")
def test_a_chat_of_openais_client_goes_on(pair: list[Server], route: Route) -> None:
    router = route(*(server.url for server in pair))
    asked: Any = {"model": "tiny", "messages": MESSAGES, "max_tokens": LONG, "seed": 3,
                  "temperature": 0.9, "extra_body": {"ignore_eos": True}}  # fmt: skip
    whole = pair[1].client().chat.completions.create(**asked).choices[0].message.content
    said = ""
    with router.strict_client().chat.completions.create(**asked, stream=True) as stream:
        for number, chunk in enumerate(stream):
            if number == 3:
                busy = next(each for each in replicas(router) if each["running"])
                assert router.ask("DELETE", f"/replicas/{busy['id']}")[0] == 202
            said += chunk.choices[0].delta.content or ""
    assert said == whole
    assert [each["requests"] for each in replicas(router)] == [1]


@pytest.mark.promise("P44")
def test_a_message_of_anthropics_client_goes_on(pair: list[Server], route: Route) -> None:
    router = route(*(server.url for server in pair))
    asked: Any = {"model": "tiny", "messages": MESSAGES, "max_tokens": LONG,
                  "extra_body": {"temperature": 0}}  # fmt: skip
    direct, routed = pair[0].anthropics_client(), router.anthropics_client()
    whole = direct.messages.create(**asked)
    with routed.messages.stream(**asked) as stream:
        for number, _ in enumerate(stream.text_stream):
            if number == 2 and (busy := [e for e in replicas(router) if e["running"]]):
                assert router.ask("DELETE", f"/replicas/{busy[0]['id']}")[0] == 202
        final = stream.get_final_message()
    assert final.content[0].text == whole.content[0].text  # type: ignore[union-attr]
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_the_last_server_keeps_its_streams(pair: list[Server], route: Route) -> None:
    router = route(pair[0].url)
    alone = events(pair[0].ask("POST", "/v1/completions", {"model": "tiny", **ASKED})[2])
    assert text(moved(router)) == text(alone)


@pytest.mark.promise("P44")
def test_at_its_end_a_server_lets_streams_go_that_it_would_cut(
    pair: list[Server], route: Route, tmp_path: Path
) -> None:
    alone = events(pair[0].ask("POST", "/v1/completions", {"model": "tiny", **ASKED})[2])
    with started(tmp_path, "--drain-seconds", "0") as ending:
        router = route(ending.url)
        found: list[Any] = []
        begun = threading.Event()

        def read() -> None:
            with router.open_stream(**ASKED) as connection:
                begun.set()
                found.append(rest(connection))

        reading = threading.Thread(target=read)
        reading.start()
        assert begun.wait(30)
        assert router.ask("POST", "/replicas", {"url": pair[1].url})[0] == 201
        until(lambda: any(each["state"] == "up" for each in replicas(router)[1:]))
        still = bool(replicas(router)[0]["running"])
        assert ending.end() == 0
        reading.join(60)
        assert b'{"error"' not in found[0]
        assert text(alone).endswith(text(events(found[0])))
        if still:
            assert replicas(router)[1]["requests"] == 1


@pytest.mark.extra
def test_where_there_are_keys_a_stream_moves_by_that_of_its_client(
    route: Route, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    user, admin = (add_key(keys, name, role) for name, role in (("u", "user"), ("a", "admin")))
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    with (
        started(folders[0], "--keys", str(keys)) as one,
        started(folders[1], "--keys", str(keys)) as two,
    ):
        headers = {"authorization": f"Bearer {admin}"}
        router = route(one.url, two.url, "--keys", str(keys), headers=headers)
        assert two.ask("POST", "/moves", {"ticket": "x"})[0] == 401
        found = moved(router)
        assert [each["requests"] for each in replicas(router)] == [1]
        own = {"authorization": f"Bearer {user}"}
        body = {"model": "tiny", **ASKED}
        assert text(found) == text(events(two.ask("POST", "/v1/completions", body, own)[2]))


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"x-kvrt-resumes": "x"}, b"{}"),
        ({"x-kvrt-resumes": "99999"}, b"{}"),
        ({"x-kvrt-resumes": "9" * 5000}, b"{}"),
        ({"x-kvrt-resumes": "1"}, b'{,"kvrt_resumes":{"seed":-1,"said":[]}}'),
        ({"x-kvrt-resumes": "1"}, b'{,"kvrt_resumes":{"seed":1,"said":[-5]}}'),
        ({"x-kvrt-resumes": "1"}, b'{,"kvrt_resumes":{"seed":1,"said":"abc"}}'),
        ({"x-kvrt-resumes": "13"}, b'{"prompt":"x"}'),
        ({"x-kvrt-resumes": "13"}, b'{"prompt":"x","kvrt_resumes":{"seed":1,"said":[1]}}'),
    ],
)
def test_what_is_not_told_as_it_should_be_is_refused(
    pair: list[Server], headers: dict[str, str], body: bytes
) -> None:
    status, _, data = pair[0].ask("POST", "/v1/completions", body, headers)
    assert status == 400, data
    assert json.loads(data)["error"]["param"] == "x-kvrt-resumes"


def test_a_stream_that_nobody_knows_is_not_found(pair: list[Server]) -> None:
    assert pair[0].post("/moves", {"ticket": "nobody's"})[0] == 404
    assert pair[0].post("/moves", {})[0] == 400


def test_the_last_event_is_kept_from_clients_however_it_is_cut() -> None:
    told = Told(7, tuple(range(50)), "id", 3)
    stream = b'data: {"a":1}\n\n: still here\n\ndata: {"b":": kvrt-moved {}"}\n\n'
    whole = stream + event_of(told)
    for size in (1, 2, 3, 7, 20, len(whole)):
        read = Events()
        passed = b"".join(read.push(whole[at : at + size]) for at in range(0, len(whole), size))
        assert passed == stream
        assert read.told == told
        assert not read.rest


def test_a_long_prompt_is_computed_by_a_server_for_that(pair: list[Server], route: Route) -> None:
    answers, computes = pair
    router = route(answers.url, "--prefill", computes.url)
    until(lambda: [each["state"] for each in replicas(router)] == ["up", "up"])
    long = "def prefill(number):\n    return number\n\n" * 30
    body = {"model": "tiny", "prompt": long, "max_tokens": 8, "temperature": 0}
    short = {**body, "prompt": PROMPT}
    before = answers.metrics()["kvrt_tier_pages_total,event=fetched"]
    status, headers, data = router.ask("POST", "/v1/completions", body)
    assert status == 200
    assert headers["x-kvrt-replica"] == "r1"
    assert router.ask("POST", "/v1/completions", short)[0] == 200
    assert [each["requests"] for each in replicas(router)] == [2, 1]
    told = json.loads(data)
    assert told["usage"]["prompt_tokens_details"]["cached_tokens"] > 200
    assert answers.metrics()["kvrt_tier_pages_total,event=fetched"] - before > 12
    alone = json.loads(computes.ask("POST", "/v1/completions", body)[2])
    assert told["choices"][0]["text"] == alone["choices"][0]["text"]


def test_where_nobody_computes_prompts_whoever_answers_does(
    pair: list[Server], route: Route
) -> None:
    router = route(pair[0].url, "--prefill", "http://127.0.0.1:1", ready=1)
    body = {"model": "tiny", "prompt": "x = 1\n" * 200, "max_tokens": 2}
    assert router.ask("POST", "/v1/completions", body)[0] == 200
