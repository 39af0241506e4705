"""`kvrt.client` does what its methods say, with and without an event loop."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from kvrt.client import ServerError
from kvrt.errors import RequestError
from kvrt.server.access.keys import add_key
from tests.batches.inputs import line, write
from tests.client.driving import Driver, driving
from tests.server.conftest import Server, started, until


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    folder = tmp_path_factory.mktemp("client")
    key = add_key(folder / "keys", "alice", "admin")
    add_key(folder / "keys", "bob")
    with started(
        folder, "--keys", str(folder / "keys"), "--batches", str(folder / "state"),
        "--max-running", "8", "--usage", str(folder / "usage"),
    ) as server:  # fmt: skip
        yield server, key


@pytest.fixture(params=["sync", "async"])
def driver(request: pytest.FixtureRequest, keyed: tuple[Server, str]) -> Iterator[Driver]:
    server, key = keyed
    with driving(request.param, server.url, key) as one:
        yield one


def asked(name: str, **body: Any) -> dict[str, Any]:
    return line(name, **{"prompt": f"say {name}", "max_tokens": 4, "temperature": 0, **body})


def over(driver: Driver, id: str) -> Any:
    return driver.all(lambda client: client.batches.watch(id, every=0.05))[-1]


def test_a_batch_from_its_file_to_its_answers(driver: Driver, tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [asked("a"), asked("b", temperature=7), asked("c")])
    begun = driver.one(
        lambda client: client.batches.start(path, metadata={"what": "a test"}, priority=7)
    )
    seen = driver.all(lambda client: client.batches.watch(begun.id, every=0.01))
    assert [each.over for each in seen] == [False] * (len(seen) - 1) + [True]
    last = seen[-1]
    assert (last.status, last.metadata) == ("completed", {"what": "a test"})
    assert last.priority == 7
    counts = last.request_counts
    assert (counts.total, counts.completed, counts.failed) == (3, 2, 1)
    answers = driver.all(lambda client: client.batches.results(last))
    assert [each.custom_id for each in answers] == ["a", "c", "b"]
    assert [each.body is None for each in answers] == [False, False, True]
    assert answers[0].body["usage"]["completion_tokens"] == 4
    (failure,) = driver.all(lambda client: client.batches.failed(last.id))
    assert (failure.line, failure.custom_id, failure.param) == (2, "b", "temperature")
    driver.one(lambda client: client.batches.retry(last.id))
    assert over(driver, last.id).request_counts == counts
    assert last.id in [each.id for each in driver.all(lambda client: client.batches.list())]
    driver.one(lambda client: client.batches.delete(last.id))
    with pytest.raises(ServerError, match="no such batch") as caught:
        driver.one(lambda client: client.batches.get(last.id))
    assert (caught.value.status, caught.value.param) == (404, "id")


def test_requests_need_no_file_and_lists_have_no_end(driver: Driver) -> None:
    requests = (
        {"custom_id": f"{n}", "url": "/v1/completions", "body": {"model": "tiny", "stream": True}}
        for n in range(230)
    )
    begun = driver.one(lambda client: client.batches.start(requests))
    assert begun.endpoint == "/v1/completions"
    assert over(driver, begun.id).request_counts.failed == 230
    failures = driver.all(lambda client: client.batches.failed(begun.id))
    assert [each.line for each in failures] == list(range(1, 231))


def test_a_batch_is_cancelled(driver: Driver) -> None:
    requests = [asked(f"{n}", max_tokens=900, ignore_eos=True) for n in range(60)]
    begun = driver.one(lambda client: client.batches.start(requests))
    assert driver.one(lambda client: client.batches.cancel(begun.id)).id == begun.id
    last = over(driver, begun.id)
    assert last.status == "cancelled"
    answers = driver.all(lambda client: client.batches.results(last))
    assert sorted(each.custom_id for each in answers) == sorted(f"{n}" for n in range(60))
    assert any(each.error is not None and each.body is None for each in answers)


def test_texts_are_cut_at_line_feeds_alone(driver: Driver) -> None:
    names = ["a\u2028b", "c\u0085d", "e\x0bf", "g\rh"]
    begun = driver.one(lambda client: client.batches.start([asked(name) for name in names]))
    answers = driver.all(lambda client: client.batches.results(over(driver, begun.id)))
    assert [each.custom_id for each in answers] == names


def test_what_cannot_be_begun_is_told_before_anything_is_sent(
    driver: Driver, tmp_path: Path
) -> None:
    for requests, match in (
        (tmp_path / "none.jsonl", "cannot be read"),
        (write(tmp_path / "odd.jsonl", [b"x"]), "no url"),
        ([], "no url"),
        ([{"custom_id": "a", "body": {}}], "no url"),
    ):
        with pytest.raises(RequestError, match=match):
            driver.one(lambda client, requests=requests: client.batches.start(requests))


def test_a_chat_comes_piece_by_piece(driver: Driver) -> None:
    pieces = driver.all(
        lambda client: client.chat("Say something.", max_tokens=12, ignore_eos=True, seed=1)
    )
    assert len(pieces) > 3
    again = driver.all(
        lambda client: client.chat(
            [{"role": "user", "content": "Say something."}], model="tiny", max_tokens=12,
            ignore_eos=True, seed=1,
        )
    )  # fmt: skip
    assert "".join(again) == "".join(pieces)
    with pytest.raises(ServerError, match="max_tokens") as caught:
        driver.all(lambda client: client.chat("x", max_tokens=-1))
    assert (caught.value.status, caught.value.param) == (400, "max_tokens")


def test_models_and_the_status_are_told(driver: Driver) -> None:
    (model,) = driver.one(lambda client: client.models())
    assert (model.id, model.parent) == ("tiny", None)
    status = driver.one(lambda client: client.status())
    assert (status.server.state, status.model.names) == ("ready", ["tiny"])
    assert status.batches.places == 6


def test_usage_is_told_by_day(driver: Driver) -> None:
    driver.all(lambda client: client.chat("x", max_tokens=1, model="tiny"))

    def today() -> bool:
        usage = driver.one(lambda client: client.usage(workspace="alice"))
        return usage.kept and any(each.key == "alice" and each.requests for each in usage.data)

    until(today)
    assert driver.one(lambda client: client.usage(since="2100-01-01")).data == []
    with pytest.raises(ServerError, match="until"):
        driver.one(lambda client: client.usage(until="soon"))


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_key_that_is_wrong_and_a_server_that_is_not_there_are_errors(
    kind: str, keyed: tuple[Server, str]
) -> None:
    with driving(kind, keyed[0].url, "wrong") as driver, pytest.raises(ServerError) as caught:
        driver.one(lambda client: client.status())
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    with driving(kind, "http://127.0.0.1:9") as driver:
        for call in (
            lambda client: client.status(),
            lambda client: client.batches.start([asked("a")]),
        ):
            with pytest.raises(ServerError, match="no answer") as caught:
                driver.one(call)
            assert caught.value.status == 0
        with pytest.raises(ServerError, match="no answer"):
            driver.all(lambda client: client.chat("x", model="tiny"))


class Odd(http.server.BaseHTTPRequestHandler):
    """Answers as no server of ours does."""

    answers: ClassVar[dict[str, tuple[int, bytes]]] = {
        "/status": (200, b"{}"),
        "/v1/models": (503, b"<html>busy</html>"),
        "/v1/batches/a": (429, b'{"error": {"message": "later", "code": "rate_limit_exceeded"}}'),
        "/v1/chat/completions": (200, b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'),
    }

    def do_GET(self) -> None:
        status, body = self.answers[self.path.partition("?")[0]]
        self.send_response(status)
        self.send_header("retry-after", "7")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None: ...


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_answers_that_are_none_are_errors_that_say_so(kind: str) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with driving(kind, f"http://127.0.0.1:{server.server_port}") as driver:
            with pytest.raises(ServerError, match="not of a server of this version"):
                driver.one(lambda client: client.status())
            with pytest.raises(ServerError, match="answered 503"):
                driver.one(lambda client: client.models())
            with pytest.raises(ServerError, match="later") as caught:
                driver.one(lambda client: client.batches.get("a"))
            assert (caught.value.status, caught.value.retry_after) == (429, 7)
            with pytest.raises(ServerError, match="early"):
                driver.all(lambda client: client.chat("x", model="tiny"))
        server.shutdown()
