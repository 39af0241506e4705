"""Whatever is sent, it is refused at once, and nobody else notices."""

import asyncio
import json
import math
import random
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import msgspec
import pytest

from kvrt.server.anthropic.messages import Conversation, MessagesRequest
from kvrt.server.errors import Refusal
from kvrt.server.ollama.fields import ChatAsked, GenerateAsked
from kvrt.server.openai.chat import ChatRequest
from kvrt.server.openai.completions import CompletionRequest
from kvrt.server.openai.responses import ResponsesRequest
from kvrt.server.plain import DetokenizeRequest, TokenizeRequest
from kvrt.server.wire.http import DISCARD_BYTES, read_body
from kvrt.server.words.fields import decode

from .conftest import MESSAGES, PROMPT, Server

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
SMALL = {"model": "tiny", "prompt": "a", "max_tokens": 1}
CHATTED = {"model": "tiny", "max_tokens": 1}
EDGES: list[Any] = [-(2**63), -1, 0, 1, 2**31, 2**63, 2**64, 10**400, 1e308, -1e308, math.nan,
                    math.inf, "1", "", True, [], [1], {}, {"a": 1}, 0.5]  # fmt: skip
NUMBERS = ["max_tokens", "n", "temperature", "top_p", "top_k", "min_p", "seed", "logprobs",
           "presence_penalty", "frequency_penalty", "repetition_penalty", "min_tokens", "best_of",
           "stop_token_ids", "logit_bias", "stop", "prompt"]  # fmt: skip
LIMIT_S = 0.1


@contextmanager
def canary(server: Server) -> Iterator[None]:
    """A stream is asked for again and again meanwhile, and always says the same."""
    said: list[str] = []
    stop = threading.Event()

    def sing() -> None:
        while not said or not stop.is_set():
            with server.client() as client:
                stream = client.completions.create(
                    model="tiny", prompt=PROMPT, max_tokens=40, temperature=0, stream=True
                )
                said.append("".join(piece.choices[0].text for piece in stream))

    singer = threading.Thread(target=sing)
    singer.start()
    try:
        yield
    finally:
        stop.set()
        singer.join(60)
    assert not singer.is_alive()
    assert len(set(said)) == 1
    assert said[0]


@pytest.mark.promise("P26")
def test_every_number_is_bounded_before_it_costs_anything(server: Server) -> None:
    """P26's table. What is taken is answered; what is not is refused at once."""
    before = server.rss
    took = []
    with canary(server):
        for name in NUMBERS:
            for value in EDGES:
                body = {**SMALL, name: value}
                begun = time.monotonic()
                status, answer = server.post(TEXT, body)
                assert status in (200, 400), (name, value, answer)
                if status == 400:
                    took.append(time.monotonic() - begun)
                    invalid = isinstance(value, float) and not math.isfinite(value)
                    named = {name, "max_tokens", None} if invalid else {name, "max_tokens"}
                    assert str(answer["error"]["param"]).split("[")[0].split(".")[0] in {
                        *map(str, named), "prompt",
                    }, (name, value, answer)  # fmt: skip
    assert len(took) > len(NUMBERS) * len(EDGES) // 2
    assert statistics.median(took) < LIMIT_S, "now and then, a machine is busy"
    assert server.rss - before < 64 << 20


@pytest.mark.promise("P26")
def test_lists_and_bodies_and_headers_are_bounded(server: Server) -> None:
    deep = b'{"model":"tiny","prompt":"a","x":' + b"[" * 100_000
    nested = b'{"model":"tiny","messages":[{"role":"user","content":' + b'{"a":' * 50_000
    lists: list[tuple[str, object, set[int]]] = [
        (TEXT, {**SMALL, "stop": ["a"] * 65}, {400}),
        (TEXT, {**SMALL, "stop": ["a" * 1025]}, {400}),
        (TEXT, {**SMALL, "logit_bias": {str(n): 0 for n in range(1025)}}, {400}),
        (TEXT, {**SMALL, "logit_bias": {"x": 1}}, {400}),
        (TEXT, {**SMALL, "logit_bias": {"999999": 1}}, {400}),
        (TEXT, {**SMALL, "stop_token_ids": [1] * 1025}, {400}),
        (TEXT, {**SMALL, "prompt": ["a"] * 129}, {400}),
        (TEXT, {**SMALL, "prompt": ["a"] * 64, "n": 3}, {400}),
        (TEXT, {**SMALL, "prompt": [[1], "a"]}, {400}),
        (TEXT, {**SMALL, "prompt": [1, "a"]}, {400}),
        (TEXT, {**SMALL, "prompt": [5] * 200_000}, {400}),
        (TEXT, {**SMALL, "prompt": "ab " * 300_000}, {400}),
        (TEXT, {**SMALL, "prompt": "a" * (2 << 20)}, {413}),
        (TEXT, {**SMALL, "prompt": "\ud800"}, {400}),
        (CHAT, {"model": "tiny", "messages": MESSAGES * 5000}, {400}),
        (CHAT, {**CHATTED, "messages": [{"role": "user"}] * 40}, {200, 400}),
        (CHAT, {"model": "tiny", "messages": [{}]}, {400}),
        (CHAT, {"model": "tiny", "messages": "hello"}, {400}),
        (TEXT, deep, {400}),
        (CHAT, nested, {400}),
        (TEXT, b"", {400}),
        (TEXT, b"null", {400}),
        (TEXT, b"[]", {400}),
        (TEXT, b'"a"', {400}),
        (TEXT, b"{" * 1000, {400}),
        (TEXT, b'{"model":"tiny","prompt":"\xff"}', {400}),
        (TEXT, b"\x00\x01\x02", {400}),
        (TEXT, b'{"model":"tiny","prompt":"a","max_tokens":1' + b"0" * 100_000 + b"}", {400}),
    ]
    with canary(server):
        for path, body, wanted in lists:
            status, answer = server.post(path, body)
            assert status in wanted, (str(body)[:80], answer)
            if status != 200:
                assert answer["error"]["message"]
        for line in (
            b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * (1 << 20) + b"\r\n\r\n",
            b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET /livez HTTP/1.1\r\n" + b"X-A: b\r\n" * 50_000 + b"\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20 + b"\r\n\r\n",
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Length: 99999999999\r\n\r\n",
            b"POST /v1/completions HTTP/1.1\r\nConnection: close\r\nContent-Encoding: gzip\r\n"
            b"Content-Length: 2\r\n\r\n{}",
            b"POST /v1/completions HTTP/9.9\r\nConnection: close\r\n\r\n",
        ):
            found = server.raw(line, timeout=5)
            assert not found or found.split()[1][:1] == b"4", found[:80]


@pytest.mark.promise("P26")
def test_what_is_not_finished_holds_up_nobody(server: Server) -> None:
    """Half a request, half a body, a client that shuts its half, and one that reads nothing."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60\r\n\r\n"
    with canary(server):
        waiting = []
        for part in (b"", b"POST", head, head + b'{"model":'):
            connection = socket.create_connection(("127.0.0.1", server.port), 30)
            connection.sendall(part)
            waiting.append(connection)
        waiting[-1].shutdown(socket.SHUT_WR)
        deaf = server.open_stream(logprobs=20)
        for _ in range(20):
            assert server.post(TEXT, SMALL)[0] == 200
        for connection in (*waiting, deaf):
            connection.close()


def words(rng: random.Random) -> Any:
    """Some JSON value."""
    kind = rng.randrange(9)
    if kind == 0:
        return rng.choice(EDGES)
    if kind == 1:
        return "".join(chr(rng.choice([rng.randrange(32, 127), rng.randrange(0x2FFF)]))
                       for _ in range(rng.randrange(20)))  # fmt: skip
    if kind == 2:
        return [words(rng) for _ in range(rng.randrange(4))]
    if kind == 3:
        return {str(words(rng))[:10]: words(rng) for _ in range(rng.randrange(3))}
    return rng.choice([None, True, False, rng.randrange(-3, 300), rng.uniform(-3, 3)])


FIELDS = [*NUMBERS, "stream", "stream_options", "echo", "suffix", "user", "ignore_eos", "messages",
          "top_logprobs", "tools", "tool_choice", "response_format", "chat_template_kwargs",
          "max_completion_tokens", "add_generation_prompt", "continue_final_message", "model",
          "skip_special_tokens", "something else", "system", "instructions", "stop_sequences",
          "input", "format", "think", "raw", "keep_alive", "guided_json", "guided_regex",
          "guided_choice", "guided_grammar", "structured_outputs", "thinking", "text",
          "parallel_tool_calls"]  # fmt: skip


def generated(rng: random.Random) -> tuple[str, bytes]:
    """A request that is nearly good, and may be broken as text, too."""
    path = rng.choice([TEXT, CHAT, "/v1/responses", "/v1/messages", "/tokenize", "/detokenize",
                       "/api/chat", "/api/generate"])  # fmt: skip
    body: dict[str, Any] = {"model": "tiny", "prompt": "a", "messages": MESSAGES, "max_tokens": 2,
                            "max_output_tokens": 2, "options": {"num_predict": 2}}  # fmt: skip
    if path == "/v1/responses":
        body["input"] = rng.choice(["a", MESSAGES, words(rng)])
        del body["prompt"]
    if path == "/detokenize":
        body["tokens"] = [1, 2]
    if path == "/tokenize":
        del body[rng.choice(["prompt", "messages"])]
    for name in rng.sample(FIELDS, rng.randrange(4)):
        body[name] = words(rng)
    for name in ("max_tokens", "max_completion_tokens", "n"):  # what is good shall end soon
        if isinstance(body.get(name), int) and 4 < body[name] < 2**31:
            body[name] = rng.randrange(4)
    for name in ("max_tokens", "max_completion_tokens"):  # one may be broken
        body[name] = 2 if body.get(name) is None else body[name]
    data = json.dumps(body).encode()
    if rng.randrange(5) == 0:
        place = rng.randrange(len(data))
        data = data[:place] + bytes([rng.randrange(256)]) + data[place + rng.randrange(3) :]
    return path, data


@pytest.mark.promise("P27", "P32")
@pytest.mark.parametrize("count", [200, pytest.param(5_000, marks=pytest.mark.extra)])
def test_no_request_ends_the_engine_or_disturbs_a_stream(server: Server, count: int) -> None:
    rng = random.Random(12)
    seen: dict[int, int] = {}
    with canary(server):
        for _ in range(count):
            path, body = generated(rng)
            status, _, answer = server.ask("POST", path, body)
            assert status < 500, (body, answer)
            seen[status] = seen.get(status, 0) + 1
            if status != 200:
                error = json.loads(answer)["error"]
                assert error if path.startswith("/api/") else error["message"]
    assert seen[200] > count // 20
    assert seen[400] > count // 10
    assert "CONNECTS" not in server.said(), "nothing that is asked makes a connection"
    assert "Traceback" not in server.said()


@pytest.mark.promise("P41")
def test_neither_the_log_nor_an_error_has_what_was_asked(server: Server) -> None:
    secret = "a-very-secret-word"
    bodies: list[tuple[str, Any]] = [
        (TEXT, {**SMALL, "prompt": secret}),
        (TEXT, {**SMALL, "prompt": [secret, 1]}),
        (TEXT, {**SMALL, "stop": [secret] * 100}),
        (TEXT, {**SMALL, "model": secret}),
        (TEXT, {**SMALL, secret: secret, "n": secret}),
        (TEXT, {**SMALL, "logit_bias": {secret: 1}}),
        (TEXT, f'{{"model": "tiny", "prompt": "{secret}'.encode()),
        (CHAT, {**CHATTED, "messages": [{"role": secret, "content": secret}]}),
        (CHAT, {**CHATTED, "messages": [{"role": "user", "content": {secret: 1}}]}),
        (CHAT, {**CHATTED, "messages": MESSAGES, "response_format": {"type": secret}}),
        (CHAT, {**CHATTED, "messages": [{secret: secret}]}),
    ]
    for path, body in bodies:
        status, answer = server.post(path, body)
        if status != 200:
            assert secret not in json.dumps(answer), body
    server.ask("GET", f"/{secret}?{secret}", headers={"Authorization": f"Bearer {secret}"})
    assert "/v1/completions by" in server.said(), "the log was on"
    assert secret not in server.said()


@pytest.mark.parametrize(
    "kind",
    [
        CompletionRequest,
        ChatRequest,
        ResponsesRequest,
        MessagesRequest,
        Conversation,
        ChatAsked,
        GenerateAsked,
        TokenizeRequest,
        DetokenizeRequest,
    ],
)
def test_the_strict_api_refuses_fields_that_are_not_known(kind: type[msgspec.Struct]) -> None:
    fields = {**SMALL, "messages": MESSAGES, "tokens": [], "input": "a"}
    if kind is ResponsesRequest:
        del fields["prompt"]  # which is something else there
    body = json.dumps(fields).encode()
    known = json.dumps({k: v for k, v in json.loads(body).items() if hasattr(kind, k)}).encode()
    tolerant = msgspec.to_builtins(decode(body, kind, strict=False))
    assert msgspec.to_builtins(decode(known, kind, strict=True)) == tolerant
    with pytest.raises(Refusal) as caught:
        decode(known[:-1] + b', "something": 1}', kind, strict=True)
    assert caught.value.param == "something"


class Inner(msgspec.Struct):
    """Somewhere inside."""

    a: int = 1


class Tagged(msgspec.Struct, tag="tagged", tag_field="type"):
    """One of several."""

    inner: Inner | None = None


class Other(msgspec.Struct, tag="other", tag_field="type"):
    """Another."""


class Outer(msgspec.Struct, kw_only=True):
    """Structs wherever a field can have them."""

    plain: Inner
    maybe: Inner | None = None
    several: Annotated[list[Inner], msgspec.Meta(max_length=4)] | None = None
    named: dict[str, Inner] = msgspec.field(default_factory=dict)
    deep: list[list[Inner | None]] | None = None
    kinds: list[Tagged | Other] | None = None
    renamed: Inner | None = msgspec.field(default=None, name="class")
    word: Literal["a", "b"] = "a"


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"plain": {"x": 1}}, "plain.x"),
        ({"maybe": {"x": 1}}, "maybe.x"),
        ({"several": [{}, {"x": 1}]}, "several[1].x"),
        ({"named": {"n": {"x": 1}}}, "named[...].x"),
        ({"deep": [[None, {"x": 1}]]}, "deep[0][1].x"),
        ({"kinds": [{"type": "other", "x": 1}]}, "kinds[0].x"),
        ({"kinds": [{"type": "tagged", "inner": {"x": 1}}]}, "kinds[0].inner.x"),
        ({"class": {"x": 1}}, "class.x"),
    ],
)
def test_the_strict_api_refuses_what_is_not_known_at_any_depth(
    fields: dict[str, Any], where: str
) -> None:
    body = json.dumps({"plain": {}, **fields}).encode()
    decode(body, Outer, strict=False)
    with pytest.raises(Refusal) as caught:
        decode(body, Outer, strict=True)
    assert caught.value.param == where
    good = body.replace(b'"x"', b'"a"').replace(b'"other", "a"', b'"tagged", "inner"')
    good = good.replace(b'"inner": 1', b'"inner": {}')
    decode(good, Outer, strict=True)
    with pytest.raises(Refusal, match="plain"):
        decode(b"{}", Outer, strict=True)


def test_of_a_body_that_never_ends_no_more_is_read_than_lets_an_answer_be_seen() -> None:
    taken = 0

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 1 << 16
        assert taken < 2 * DISCARD_BYTES
        return {"type": "http.request", "body": bytes(1 << 16), "more_body": True}

    scope = {"type": "http", "headers": [(b"content-length", b"9" * 12)]}
    with pytest.raises(Refusal, match="longer than 1000 bytes"):
        asyncio.run(read_body(scope, receive, 1000))
    assert taken >= DISCARD_BYTES
