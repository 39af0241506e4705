"""`kvrt route` before two servers, asked by real clients."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import openai
import pytest

from kvrt.server.access.keys import add_key
from kvrt.server.access.limits import Limits
from tests.routing.conftest import Route, publishing, replicas, ups
from tests.server.clients import ROUTES, asked
from tests.server.conftest import MESSAGES, PROMPT, Server, until

Pair = list[tuple[Server, str]]
LONG = "def read_lines(path):\n    return path\n\n\n" * 12


def urls(pair: Pair) -> list[str]:
    return [address for _, address in pair]


def by(router: Server, body: dict[str, object], path: str = "/v1/completions") -> str:
    """Who has answered a request."""
    status, headers, data = router.ask("POST", path, body)
    assert status == 200, data
    return headers["x-kvrt-replica"]


def test_answers_are_those_of_the_servers_on_every_route(pair: Pair, route: Route) -> None:
    router = route(*urls(pair))
    for path in ROUTES:
        body = {**asked(path, "def f():", 6, stream=False), "temperature": 0}
        if path.startswith("/api/"):
            body["options"]["temperature"] = 0  # type: ignore[index]
        direct, routed = (
            json.loads(each.ask("POST", path, body)[2]) for each in (pair[0][0], router)
        )
        changing = ("id", "created", "created_at", "total_duration", "load_duration", "output",
                    "prompt_eval_duration", "eval_duration", "completed_at", "usage")  # fmt: skip
        for found in (direct, routed):
            for name in changing:
                found.pop(name, None)
        assert routed == direct


def test_the_official_clients_stream_through_it(pair: Pair, route: Route) -> None:
    router = route(*urls(pair))
    chat = router.strict_client().chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=8, stream=True
    )
    assert sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in chat) > 1
    client = router.anthropics_client()
    with client.messages.stream(model="tiny", messages=MESSAGES, max_tokens=8) as stream:
        assert "".join(stream.text_stream)
    assert [each.id for each in router.client().models.list()] == ["tiny"]


def test_a_prompt_goes_where_its_beginning_is_cached(pair: Pair, route: Route) -> None:
    """Also where the server that has it was asked past the router."""
    server, _ = pair[1]
    server.post("/v1/completions", {"model": "tiny", "prompt": LONG, "max_tokens": 1})
    router = route(*urls(pair))
    until(lambda: all(each["cached_pages"] for each in replicas(router)[1:]))
    chosen = {by(router, {"model": "tiny", "prompt": f"{LONG}{n}", "max_tokens": 1}) for n in "abc"}
    assert chosen == {"r2"}
    told = router.client().completions.create(model="tiny", prompt=LONG, max_tokens=1)
    assert told.usage
    assert told.usage.prompt_tokens_details
    assert told.usage.prompt_tokens_details.cached_tokens


def test_prompts_that_have_nothing_in_common_are_spread(pair: Pair, route: Route) -> None:
    router = route(*urls(pair))
    chosen = [
        by(router, {"model": "tiny", "prompt": f"{n} is {n * n}; " * 9, "max_tokens": 1})
        for n in range(100, 108)
    ]
    assert set(chosen) == {"r1", "r2"}


def test_a_request_that_was_refused_is_cached_nowhere(pair: Pair, route: Route) -> None:
    """Its prompt is there, but its parameters are not as they should be."""
    router = route(pair[0][0].url, pair[1][0].url)  # which tell nothing
    body = {"model": "tiny", "prompt": "refused " * 60, "max_tokens": 1}
    for temperature in (-1, -1, -1):
        wrong = {**body, "temperature": temperature}
        assert router.ask("POST", "/v1/completions", wrong)[0] == 400
    by(router, body)
    assert sum(each["cached_tokens"] for each in replicas(router)) == 0
    assert by(router, body) == by(router, body)
    assert sum(each["cached_tokens"] for each in replicas(router)) > 100


def test_streams_show_how_fast_a_server_is(pair: Pair, route: Route) -> None:
    router = route(pair[0][0].url)
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 4}
    by(router, body)
    assert replicas(router)[0]["seconds_per_token"] is None
    by(router, {**body, "stream": True})
    assert 0 < replicas(router)[0]["seconds_per_token"] < 10


def test_who_shares_pages_with_nobody_goes_where_he_was(pair: Pair, route: Route) -> None:
    """Pages of a key are told to nobody, so what was asked has to do."""
    router = route(*urls(pair))
    mine = {"authorization": "Bearer mine"}
    body = {"model": "tiny", "prompt": LONG * 2, "max_tokens": 1}
    chosen = {router.ask("POST", "/v1/completions", body, mine)[1]["x-kvrt-replica"] for _ in "abc"}
    assert len(chosen) == 1


def test_no_request_is_lost_while_a_server_is_killed_and_another_joins(
    pair: Pair, route: Route, tmp_path: Path
) -> None:
    with publishing(tmp_path) as (doomed, address):
        router = route(urls(pair)[0], address)
        half = threading.Event()

        def ask(number: int) -> int:
            if number == 30:
                doomed.process.kill()
            if number == 40:
                half.set()
            body = {"model": "tiny", "prompt": f"{number} {PROMPT}", "max_tokens": 12}
            return router.ask("POST", "/v1/completions", body)[0]

        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(ask, number) for number in range(100)]
            assert half.wait(60)
            url, events, replay = urls(pair)[1].split(",")
            joins = {"url": url, "events": events, "replay": replay}
            assert router.ask("POST", "/replicas", joins)[0] == 201
            assert {each.result() for each in answers} == {200}
    states = [each["state"] for each in replicas(router)]
    assert states[:2] == ["up", "down"]
    until(lambda: ups(router) == 2)
    assert replicas(router)[2]["requests"] or by(router, {"model": "tiny", "prompt": "x"})


def test_a_stream_that_has_begun_is_never_begun_again_but_ends_with_an_error(
    pair: Pair, route: Route, tmp_path: Path
) -> None:
    with publishing(tmp_path) as (doomed, address):
        router = route(address)
        stream = router.client().completions.create(
            model="tiny", prompt=PROMPT, max_tokens=900, stream=True,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        next(iter(stream))
        assert router.ask("POST", "/replicas", {"url": pair[0][0].url})[0] == 201
        doomed.process.kill()
        with pytest.raises(openai.APIError, match="the server that answered is gone"):
            list(stream)


def test_a_client_that_leaves_ends_its_request_at_the_server(pair: Pair, route: Route) -> None:
    router = route(urls(pair)[0])
    server = pair[0][0]
    connection = router.open_stream()
    until(lambda: server.metrics()["kvrt_sequences,state=running"] == 1)
    connection.close()
    until(lambda: server.metrics()["kvrt_sequences,state=running"] == 0)
    until(lambda: replicas(router)[0]["running"] == 0)


def test_a_server_that_is_left_out_answers_what_it_has_begun(pair: Pair, route: Route) -> None:
    router = route(*urls(pair))
    stream = router.client().completions.create(
        model="tiny", prompt="slow", max_tokens=300, stream=True, extra_body={"ignore_eos": True}
    )
    pieces = iter(stream)
    next(pieces)
    (busy,) = (each["id"] for each in replicas(router) if each["running"])
    assert router.ask("DELETE", f"/replicas/{busy}")[0] == 202
    assert by(router, {"model": "tiny", "prompt": "slow", "max_tokens": 1}) != busy
    assert list(pieces)
    until(lambda: busy not in [each["id"] for each in replicas(router)])


def test_without_a_server_that_is_ready_it_says_so(route: Route, pair: Pair) -> None:
    router = route("http://127.0.0.1:9", ready=0)
    status, headers, data = router.ask("POST", "/v1/completions", {"prompt": "x"})
    assert (status, headers["retry-after"]) == (503, "1")
    assert json.loads(data)["error"]["message"] == "no server is ready"
    assert router.ask("GET", "/readyz")[0] == 503
    assert router.ask("GET", "/livez")[0] == 200


def test_what_one_server_keeps_is_not_sent_on(pair: Pair, route: Route) -> None:
    router = route(urls(pair)[0])
    for path in ("/v1/files", "/v1/batches", "/nothing"):
        status, _, data = router.ask("GET", path)
        assert status == 404
        assert "asked for there" in json.loads(data)["error"]["message"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"url": "http://127.0.0.1:1/path"}, "is not the address of a server"),
        ({"url": "ftp://127.0.0.1:1"}, "is not the address of a server"),
        ({"url": "http://127.0.0.1:99999"}, "is not the address of a server"),
        ({"url": "http://127.0.0.1:1", "events": "http://x"}, "is not an address of ZeroMQ"),
        ({"url": "http://127.0.0.1:9"}, "is there already"),
        ({}, "url"),
    ],
)
def test_a_server_that_cannot_join_is_refused_by_its_reason(
    body: dict[str, str], says: str, route: Route
) -> None:
    router = route("http://127.0.0.1:9", ready=0)
    status, _, data = router.ask("POST", "/replicas", body)
    assert status == 400
    assert says in json.loads(data)["error"]["message"]


def test_with_keys_only_an_admin_says_which_servers_there_are(
    pair: Pair, route: Route, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    keys = {role: add_key(file, role, role, Limits.read(())) for role in ("user", "admin")}
    user, admin = ({"authorization": f"Bearer {keys[role]}"} for role in ("user", "admin"))
    router = route("--keys", str(file), urls(pair)[0], headers=admin)
    body = {"model": "tiny", "prompt": "x", "max_tokens": 1}
    assert router.ask("POST", "/v1/completions", body, {"authorization": ""})[0] == 401
    assert router.ask("POST", "/v1/completions", body, user)[0] == 200
    joins = {"url": pair[1][0].url}
    assert router.ask("POST", "/replicas", joins, user)[0] == 403
    assert router.ask("DELETE", "/replicas/r1", headers=user)[0] == 403
    assert router.ask("POST", "/replicas", joins, admin)[0] == 201


@contextmanager
def pretended(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server that is ready, and does to each request what it is told to; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            answer(self)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_request_that_takes_too_long_is_given_up_and_its_server_goes_on(route: Route) -> None:
    ended, asked = threading.Event(), []

    def wait(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        ended.wait(60)

    with pretended(wait) as one, pretended(wait) as other:
        router = route(one, other, "--answer-seconds", "1", "--policy", "least-loaded")
        status, data = router.post("/v1/completions", {"prompt": "x"})
        ended.set()
        assert (status, data["error"]["code"]) == (504, "timeout")
        assert asked == ["/v1/completions"], "no other server is asked the same"
        assert [each["state"] for each in replicas(router)] == ["up", "up"]


def test_a_request_that_breaks_whoever_gets_it_does_not_reach_all(route: Route) -> None:
    asked = []

    def hang_up(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        handler.connection.shutdown(socket.SHUT_RDWR)

    with ExitStack() as running:
        servers = [running.enter_context(pretended(hang_up)) for _ in range(5)]
        router = route(*servers, "--policy", "least-loaded")
        status, data = router.post("/v1/completions", {"prompt": "x"})
        assert (status, data["error"]["code"]) == (503, "no_server")
        assert len(asked) == 3
