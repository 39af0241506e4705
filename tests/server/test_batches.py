"""Files and batches, by OpenAI's own client, in its strict mode."""

import io
import json
import signal
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from kvrt.server.access.keys import add_key
from tests.batches.inputs import line

from .conftest import MESSAGES, Serve, Server, started, until


@pytest.fixture(scope="module")
def batching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("batches")
    with started(folder, "--batches", str(folder / "state"), "--max-running", "16") as one:
        yield one


@pytest.fixture
def client(batching: Server) -> Iterator[openai.OpenAI]:
    with batching.client(_strict_response_validation=True) as one:
        yield one


def asked(name: str, prompt: str = "x", **body: Any) -> dict[str, Any]:
    return line(name, **{"prompt": prompt, "max_tokens": 4, "temperature": 0, **body})


def jsonl(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


def upload(client: openai.OpenAI, lines: list[dict[str, Any]]) -> str:
    return client.files.create(file=("in.jsonl", jsonl(lines)), purpose="batch").id


def begin(client: openai.OpenAI, lines: list[dict[str, Any]], **options: Any) -> str:
    given = {"endpoint": "/v1/completions", "completion_window": "24h", **options}
    return client.batches.create(input_file_id=upload(client, lines), **given).id


def ended(client: openai.OpenAI, id: str) -> openai.types.Batch:
    over = ("completed", "failed", "expired", "cancelled")
    until(lambda: client.batches.retrieve(id).status in over, 120)
    return client.batches.retrieve(id)


def lines_of(client: openai.OpenAI, id: str | None) -> list[Any]:
    return (
        [] if id is None else [json.loads(each) for each in client.files.content(id).iter_lines()]
    )


def names(lines: list[Any]) -> list[str]:
    return [each["custom_id"] for each in lines]


def test_files_are_taken_listed_and_deleted(client: openai.OpenAI) -> None:
    data = bytes(range(256)) * 5000
    first = client.files.create(file=("näme.bin", data), purpose="user_data")
    second = client.files.create(
        file=("b", b""), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (first.bytes, first.filename, first.purpose) == (len(data), "näme.bin", "user_data")
    assert second.expires_at == second.created_at + 3600
    assert client.files.retrieve(first.id) == first
    assert client.files.content(first.id).read() == data
    assert client.files.content(second.id).read() == b""
    assert [each.id for each in client.files.list(limit=1)][:2] == [second.id, first.id]
    assert [each.id for each in client.files.list(order="asc", after=first.id)] == [second.id]
    assert first.id not in [each.id for each in client.files.list(purpose="batch")]
    for id in (first.id, second.id):
        assert client.files.delete(id).deleted
        for gone in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(openai.NotFoundError):
                gone(id)


@pytest.mark.promise("P34")
def test_a_batch_from_its_file_to_its_answers(batching: Server, client: openai.OpenAI) -> None:
    before = batching.metrics()
    lines = [asked(f"n{n}", f"say {n}") for n in range(40)] + [asked("bad", temperature=7)]
    id = begin(client, lines, metadata={"what": "a test"})
    found = ended(client, id)
    assert found.status == "completed"
    assert found.metadata == {"what": "a test"}
    counts = found.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (41, 40, 1)
    assert found.usage is not None
    output, errors = lines_of(client, found.output_file_id), lines_of(client, found.error_file_id)
    assert names(output) == [f"n{n}" for n in range(40)]
    assert [each["custom_id"] for each in errors] == ["bad"]
    assert errors[0]["response"]["body"]["error"]["param"] == "temperature"
    bodies = [openai.types.Completion.model_validate(each["response"]["body"]) for each in output]
    said = sum(body.usage.completion_tokens for body in bodies if body.usage)
    assert found.usage.output_tokens == said
    direct = client.completions.create(model="tiny", prompt="say 7", max_tokens=4, temperature=0)
    assert bodies[7].choices[0].text == direct.choices[0].text
    files = {each.id: each for each in client.files.list(purpose="batch_output")}
    assert {found.output_file_id, found.error_file_id} <= files.keys()
    assert id in [each.id for each in client.batches.list(limit=5)]
    after = batching.metrics()
    for status, count in (("200", 40), ("400", 1)):
        name = f"kvrt_batch_lines_total,status={status}"
        assert after[name] - before.get(name, 0) == count


def test_lines_ask_every_route_as_clients_do(client: openai.OpenAI) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 3},
        "/v1/responses": {"input": "Say something.", "max_output_tokens": 3},
        "/v1/embeddings": {"input": "w1"},
    }
    for url, body in bodies.items():
        given = {**asked("a"), "url": url, "body": {"model": "tiny", **body}}
        found = ended(client, begin(client, [given], endpoint=url))
        (only,) = lines_of(client, found.output_file_id or found.error_file_id)
        status = 404 if url == "/v1/embeddings" else 200  # nothing makes vectors here
        assert only["response"]["status_code"] == status, only


@pytest.mark.promise("P34")
def test_an_input_with_a_bad_line_fails_with_its_number(client: openai.OpenAI) -> None:
    found = ended(client, begin(client, [asked("a"), asked("a")]))
    assert found.status == "failed"
    assert found.errors is not None
    assert found.errors.data is not None
    (problem,) = found.errors.data
    assert (problem.code, problem.line, problem.param) == ("duplicate_custom_id", 2, "custom_id")
    assert found.output_file_id is found.error_file_id is None
    found = ended(client, begin(client, [{**asked("a"), "url": "/v1/responses"}]))
    assert found.errors is not None
    assert found.errors.data is not None
    assert found.errors.data[0].code == "invalid_url"


def test_what_cannot_be_a_batch_is_refused(client: openai.OpenAI) -> None:
    id = upload(client, [asked("a")])
    other = client.files.create(file=("x", b"x"), purpose="user_data").id
    good = {"input_file_id": id, "endpoint": "/v1/completions", "completion_window": "24h"}
    wrong: list[tuple[str, Any]] = [
        ("input_file_id", "file-none"), ("input_file_id", other), ("endpoint", "/v1/secrets"),
        ("completion_window", "soon"), ("completion_window", "0h"),
        ("metadata", {f"{n}": "x" for n in range(17)}), ("metadata", {"x": "x" * 513}),
        ("output_expires_after", {"anchor": "created_at", "seconds": 5}),
    ]  # fmt: skip
    for name, value in wrong:
        with pytest.raises(openai.BadRequestError) as caught:
            client.batches.create(**{**good, name: value})  # type: ignore[arg-type]
        assert caught.value.param is not None
        assert caught.value.param.startswith(name)


@pytest.mark.promise("P26")
def test_what_is_asked_of_files_and_batches_is_bounded(batching: Server) -> None:
    for path in ("/v1/files", "/v1/batches"):
        for limit in ("0", "-1", "10001", "99999999999999999999", "x", "1.5", "\u0661"):
            asked = f"{path}?limit={urllib.parse.quote(limit)}"
            assert batching.ask("GET", asked)[0] == 400, asked
        for after in ("nothing", "x" * 5000, "%00", "%ff", "'; DROP TABLE files"):
            asked = f"{path}?after={urllib.parse.quote(after)}"
            status, _, body = batching.ask("GET", asked)
            assert (status, json.loads(body)["data"]) == (200, []), asked
        for id in ("nothing", "%2e%2e", "x" * 5000, "%00", "a%2fb"):
            assert batching.ask("GET", f"{path}/{id}")[0] == 404, id
    assert batching.ask("GET", "/v1/files?order=up")[0] == 400
    assert batching.ask("POST", "/v1/batches", b"x" * (1 << 20))[0] == 413
    kind = {"content-type": "multipart/form-data; boundary=b"}
    for body, param in (
        (b"--b--", "file"),
        (
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nx\r\n--b--',
            "purpose",
        ),
    ):
        status, _, said = batching.ask("POST", "/v1/files", body, kind)
        assert (status, json.loads(said)["error"]["param"]) == (400, param)
    huge = {**kind, "content-length": str(1 << 40)}
    assert (
        batching.raw(
            b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            + "".join(f"{name}: {value}\r\n" for name, value in huge.items()).encode()
            + b"\r\n",
            10,
        ).split()[1]
        == b"413"
    )
    folder = next(Path(each) for each in batching.process.args if str(each).endswith("/state"))  # type: ignore[union-attr]
    assert not [path for path in (folder / "files").iterdir() if not path.stat().st_size]


@pytest.mark.promise("P34")
def test_a_batch_that_is_cancelled_keeps_what_was_answered(client: openai.OpenAI) -> None:
    lines = [asked(f"n{n}", max_tokens=200, ignore_eos=True) for n in range(400)]
    lines[0]["body"]["max_tokens"] = 1
    id = begin(client, lines)

    def some() -> bool:
        counts = client.batches.retrieve(id).request_counts
        return counts is not None and counts.completed > 0

    until(some, 60)
    input = client.batches.retrieve(id).input_file_id
    with pytest.raises(openai.ConflictError, match="needs this file"):
        client.files.delete(input)
    assert client.batches.cancel(id).status in ("cancelling", "cancelled")
    found = ended(client, id)
    assert found.status == "cancelled"
    assert found.cancelled_at is not None
    output, errors = lines_of(client, found.output_file_id), lines_of(client, found.error_file_id)
    assert 0 < len(output) < 400
    assert sorted(names(output + errors)) == sorted(f"n{n}" for n in range(400))
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(id)


def test_lines_that_failed_are_asked_again(batching: Server, client: openai.OpenAI) -> None:
    id = begin(client, [asked("a"), asked("b", temperature=7)])
    ended(client, id)
    status, again = batching.post(f"/v1/batches/{id}/retry", {})
    assert (status, again["status"]) == (200, "in_progress")
    found = ended(client, id)
    assert found.request_counts is not None
    assert (found.request_counts.completed, found.request_counts.failed) == (1, 1)
    assert names(lines_of(client, found.output_file_id)) == ["a"]
    id = begin(client, [asked("a")])
    ended(client, id)
    assert batching.post(f"/v1/batches/{id}/retry", {})[0] == 409


def failed_of(server: Server, id: str, query: str = "") -> Any:
    status, _, body = server.ask("GET", f"/v1/batches/{id}/failed{query}")
    assert status == 200, body
    return json.loads(body)


def test_lines_that_failed_are_told_with_their_reasons(
    batching: Server, client: openai.OpenAI
) -> None:
    bad = {"b": {"temperature": 7}, "d": {"max_tokens": -1}, "e": {"stream": True}}
    id = begin(client, [asked(name, **bad.get(name, {})) for name in "abcde"])
    found = ended(client, id)
    told = failed_of(batching, id)
    errors = [each["response"] for each in lines_of(client, found.error_file_id)]
    assert [(each["line"], each["custom_id"]) for each in told["data"]] == [
        (2, "b"), (4, "d"), (5, "e")
    ]  # fmt: skip
    assert [each["param"] for each in told["data"]] == ["temperature", "max_tokens", "stream"]
    for each, error in zip(told["data"], errors, strict=True):
        assert each["status_code"] == error["status_code"] == 400
        assert each["message"] == error["body"]["error"]["message"]
    assert not told["has_more"]
    first = failed_of(batching, id, "?limit=1")
    assert (first["data"], first["has_more"]) == (told["data"][:1], True)
    assert failed_of(batching, id, "?after=2")["data"] == told["data"][1:]
    for query in ("limit=0", "limit=101", "after=x", "after=-1", "after=99999999999"):
        assert batching.ask("GET", f"/v1/batches/{id}/failed?{query}")[0] == 400, query
    assert batching.ask("GET", "/v1/batches/none/failed")[0] == 404


def test_lines_that_were_not_asked_are_told_once_the_batch_is_over(
    batching: Server, client: openai.OpenAI
) -> None:
    lines = [asked(f"n{n}", max_tokens=400, ignore_eos=True) for n in range(200)]
    lines[0] = asked("n0", temperature=7)
    id = begin(client, lines)
    until(lambda: bool(failed_of(batching, id)["data"]), 60)
    (only,) = failed_of(batching, id)["data"]
    assert (only["line"], only["status_code"]) == (1, 400)
    until(lambda: (client.batches.retrieve(id).model_extra or {})["progress"] is not None, 60)
    progress = (client.batches.retrieve(id).model_extra or {})["progress"]
    assert progress["lines"] >= 1
    assert progress["seconds_left"] > 0
    client.batches.cancel(id)
    found = ended(client, id)
    counts = found.request_counts
    assert counts is not None
    told, page = [], {"data": [{"line": 0}], "has_more": True}
    while page["has_more"]:
        page = failed_of(batching, id, f"?limit=100&after={told[-1]['line'] if told else 1}")
        told += page["data"]
    assert len(told) == counts.total - counts.completed - counts.failed
    assert {(each["status_code"], each["code"]) for each in told} == {(None, "batch_cancelled")}
    client.files.delete(found.input_file_id)
    assert failed_of(batching, id)["data"][1]["custom_id"] is None
    until(lambda: (client.batches.retrieve(id).model_extra or {})["progress"] is None, 60)


def test_a_batch_is_deleted_and_its_files_stay(batching: Server, client: openai.OpenAI) -> None:
    id = begin(client, [asked("a")])
    found = ended(client, id)
    assert batching.ask("DELETE", f"/v1/batches/{id}")[0] == 200
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve(id)
    assert names(lines_of(client, found.output_file_id)) == ["a"]


def test_clients_come_before_the_lines_of_a_batch(client: openai.OpenAI) -> None:
    """A request is answered while hundreds of lines wait that came before it."""
    id = begin(client, [asked(f"n{n}", max_tokens=60, ignore_eos=True) for n in range(300)])

    def counted() -> int:
        counts = client.batches.retrieve(id).request_counts
        return 0 if counts is None else counts.completed

    until(lambda: counted() > 0, 60)
    client.completions.create(model="tiny", prompt="x", max_tokens=4)
    assert counted() < 300
    client.batches.cancel(id)
    assert ended(client, id).status in ("cancelled", "completed")


@pytest.mark.promise("P30")
def test_nobody_finds_the_files_and_batches_of_another_key(serve: Serve, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    made = [add_key(keys, name) for name in ("alice", "bob")]
    server = serve("--keys", str(keys), "--batches", str(tmp_path / "state"), "--batch-space",
                   "100KiB")  # fmt: skip
    alice, bob = (server.client(api_key=key) for key in made)
    with alice, bob:
        id = begin(alice, [asked("a", "secret")])
        found = ended(alice, id)
        files = [found.input_file_id, found.output_file_id]
        for file in files:
            for look in (bob.files.retrieve, bob.files.content, bob.files.delete):
                with pytest.raises(openai.NotFoundError):
                    look(file)  # type: ignore[arg-type]
            with pytest.raises(openai.BadRequestError):
                bob.batches.create(
                    input_file_id=str(file), endpoint="/v1/completions", completion_window="24h"
                )
            assert alice.files.retrieve(str(file))
        for ask in (bob.batches.retrieve, bob.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                ask(id)
        bobs = {"authorization": f"Bearer {made[1]}"}
        assert server.ask("POST", f"/v1/batches/{id}/retry", {}, bobs)[0] == 404
        assert server.ask("GET", f"/v1/batches/{id}/failed", headers=bobs)[0] == 404
        assert server.ask("DELETE", f"/v1/batches/{id}", headers=bobs)[0] == 404
        assert [*bob.files.list(after=files[0])] == [*bob.batches.list(after=id)] == []
        assert [*bob.files.list()] == [*bob.batches.list()] == []
        alice.files.create(file=("x", bytes(90 << 10)), purpose="batch")
        with pytest.raises(openai.APIStatusError) as caught:
            alice.files.create(file=("x", bytes(90 << 10)), purpose="batch")
        assert caught.value.status_code == 413
        assert bob.files.create(file=("x", bytes(90 << 10)), purpose="batch").bytes == 90 << 10


@pytest.mark.promise("P33")
def test_a_server_that_is_killed_goes_on_with_its_batches(serve: Serve, tmp_path: Path) -> None:
    state = ("--batches", str(tmp_path / "state"), "--max-running", "4")
    first = serve(*state)
    with first.client() as client:
        id = begin(client, [asked(f"n{n}", max_tokens=3) for n in range(300)])

        def counted() -> int:
            counts = client.batches.retrieve(id).request_counts
            return 0 if counts is None else counts.completed

        until(lambda: counted() > 0, 60)
    first.process.kill()
    first.process.wait()
    second = serve(*state)
    with second.client() as client:
        found = ended(client, id)
        assert found.request_counts is not None
        assert (found.request_counts.completed, found.request_counts.failed) == (300, 0)
        assert names(lines_of(client, found.output_file_id)) == [f"n{n}" for n in range(300)]
        begin(client, [asked(f"n{n}", max_tokens=900, ignore_eos=True) for n in range(300)])
    second.process.send_signal(signal.SIGTERM)
    assert second.process.wait(60) == 0


def test_without_a_folder_there_are_none(server: Server) -> None:
    with server.client() as client:
        with pytest.raises(openai.NotFoundError, match="--batches"):
            client.files.list()
        with pytest.raises(openai.NotFoundError, match="--batches"):
            client.files.create(file=io.BytesIO(b"x"), purpose="batch")
