"""Nothing of one workspace is seen by another, by any route there is.

A route that is not in `TABLE` fails the first test: say there what it could tell.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from starlette.routing import Route, WebSocketRoute

from kvrt import Runtime
from kvrt.aio.runtime import AsyncRuntime
from kvrt.server.access.keys import add_key
from kvrt.server.app import make_app
from kvrt.server.config import ServerConfig
from kvrt.server.page import FILES
from kvrt.server.service import Service
from tests.embedding.encoders import make_encoder
from tests.embedding.test_reranker import Case

from .clients import ROUTES, asked
from .conftest import Server, started, until
from .test_sockets import connected

SECRET = "w1 canary of alice and nobody else "
FILE = {"model": "tiny", "prompt": "w5 in a batch " + SECRET * 8, "max_tokens": 2}
Body = dict[str, Any]


@dataclass(frozen=True)
class Asks:
    """A route that asks the model: what is cached and kept of it is its workspace's.

    Args:
        shape: the route whose bodies it takes.
    """

    shape: str

    def body(self, text: str) -> Body:
        body = {**asked(self.shape, text, 2, stream=False), "temperature": 0}
        if self.shape.startswith("/api/"):
            body["options"] = {"num_predict": 2, "temperature": 0}
        return body


@dataclass(frozen=True)
class Owned:
    """A route of one file or batch, which is there for its own workspace.

    Args:
        what: ``file``, ``batch``, or ``output``, whose id is asked for.
        status: for the own workspace.
    """

    what: str
    status: int = 200


@dataclass(frozen=True)
class Lists:
    """A route that tells of one's own."""

    query: str = ""


@dataclass(frozen=True)
class Makes:
    """A route that makes something of what it is sent, and keeps nothing that others see."""

    body: Callable[[], Body]


@dataclass(frozen=True)
class Same:
    """A route that tells all the same, of the server and the model."""


@dataclass(frozen=True)
class ForAdmins:
    """A route that other roles are refused at, and admins in a workspace."""


@dataclass(frozen=True)
class InCharge:
    """A route for admins, of what is in their charge.

    Args:
        status: for another workspace's.
    """

    status: int
    body: Body | None = None


@dataclass(frozen=True)
class Going:
    """A route of a request that goes on, and is there for who may end it."""


MESSAGES = [{"role": "user", "content": "w1"}]
CHAT, TEXT, ANSWERS = "/v1/chat/completions", "/v1/completions", "/v1/responses"
RERANK = Makes(lambda: {"model": "judge", "query": "w1 w2", "documents": ["w3"]})
EMBED = Makes(lambda: {"model": "encoder", "input": "w1"})
COUNT = Makes(lambda: {"model": "tiny", "input": "w1"})
TABLE: dict[str, Asks | Owned | Lists | Makes | Same | ForAdmins | InCharge | Going] = {
    **{f"GET {path}": Same() for path in (
        *FILES, "/livez", "/readyz", "/health", "/version", "/v1/models", "/models",
        "/v1/models/{name:path}", "/models/{name:path}", "/v2/models/{name:path}/ready",
        "/v2/health/live", "/v2/health/ready", "/api/version", "/api/tags", "/api/ps",
    )},
    "POST /api/show": Makes(lambda: {"model": "tiny"}),
    **{f"{kind} {path}": Asks(shape) for kind in ("POST", "WS") for path, shape in (
        (TEXT, TEXT), ("/completions", TEXT), (CHAT, CHAT), ("/chat/completions", CHAT),
        (ANSWERS, ANSWERS), ("/responses", ANSWERS), ("/v1/messages", "/v1/messages"),
        ("/api/chat", "/api/chat"), ("/api/generate", "/api/generate"),
    )},
    "POST /v1/embeddings": EMBED,
    "POST /embeddings": EMBED,
    "POST /rerank": RERANK,
    "POST /v1/rerank": RERANK,
    "POST /v2/rerank": RERANK,
    **{f"POST {version}/audio/{task}": Makes(dict)
       for version in ("", "/v1") for task in ("transcriptions", "translations")},
    "POST /tokenize": Makes(lambda: {"prompt": "w1"}),
    **{f"POST /tokens{path}": Makes(partial(asked, path, "w1", 1, stream=False))
       for path in ROUTES},
    "POST /detokenize": Makes(lambda: {"tokens": [7]}),
    "POST /v1/messages/count_tokens": Makes(lambda: {"model": "tiny", "messages": MESSAGES}),
    "POST /v1/responses/input_tokens": COUNT,
    "POST /responses/input_tokens": COUNT,
    "GET /status": Lists(),
    "GET /usage": Lists("?detail=requests"),
    "GET /v1/files": Lists(),
    "GET /v1/batches": Lists(),
    "GET /v1/files/{id}": Owned("file"),
    "GET /v1/files/{id}/content": Owned("output"),
    "GET /v1/batches/{id}": Owned("batch"),
    "GET /v1/batches/{id}/failed": Owned("batch"),
    "POST /v1/batches/{id}/cancel": Owned("batch", 409),
    "POST /v1/batches/{id}/retry": Owned("batch", 409),
    "POST /v1/files": Makes(dict),
    "POST /v1/batches": Owned("input", 200),
    "DELETE /answers": Lists(),
    "POST /moves": Makes(lambda: {"ticket": "somebody's"}),
    "GET /keys": InCharge(200),
    "POST /keys": InCharge(403, {"name": "mine", "workspace": "other"}),
    "DELETE /keys/{name}": InCharge(404),
    "DELETE /requests/{id}": Going(),
    "DELETE /v1/batches/{id}": Owned("batch"),
    "DELETE /v1/files/{id}": Owned("file"),
    "GET /metrics": ForAdmins(),
    "POST /v1/load_lora_adapter": ForAdmins(),
    "POST /profile": ForAdmins(),
    "DELETE /profile": ForAdmins(),
    "POST /v1/unload_lora_adapter": ForAdmins(),
}  # fmt: skip

ASKED = [key for key, how in TABLE.items() if isinstance(how, Asks)]


def routes_of(app: Any) -> Iterator[str]:
    """Each with its method, as `TABLE` has them."""
    for route in app.routes:
        if isinstance(route, WebSocketRoute):
            yield f"WS {route.path}"
        else:
            assert isinstance(route, Route), route
            yield from (f"{each} {route.path}" for each in route.methods or () if each != "HEAD")


@pytest.mark.promise("P30")
def test_every_route_is_in_the_table() -> None:
    async def found() -> list[str]:
        service = Service(AsyncRuntime(runtime), ServerConfig())
        try:
            return list(routes_of(make_app(service)))
        finally:
            service.close()

    with Runtime("tiny", backend="cpu", memory_limit="64MiB") as runtime:
        assert sorted(asyncio.run(found())) == sorted(TABLE)


@dataclass
class Place:
    """A server, its keys, and what alice has in it.

    Args:
        ids: of her file, her batch and its output.
    """

    server: Server
    keys: dict[str, str]
    ids: dict[str, str]

    def ask(self, who: str, method: str, path: str, body: object = None) -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {self.keys[who]}", "x-kvrt-cache": "off"}
        status, found, data = self.server.ask(method, path, body, headers)
        return status, f"{found} {data.decode(errors='replace')}"

    def cached(self, who: str, kind: str, path: str, body: Body) -> float:
        """How many tokens of a prompt were found in the cache."""
        self.server.headers = {"Authorization": f"Bearer {self.keys['admin']}"}
        before = self.server.metrics()
        if kind == "WS":
            with connected(self.server, path, self.keys[who]) as client:
                client.say(body)
                assert "error" not in client.answer()[-1]
        else:
            status, told = self.ask(who, "POST", path, body)
            assert status == 200, told
        name = "kvrt_requests_total,outcome=length"
        until(lambda: self.server.metrics()[name] > before[name])
        after = self.server.metrics()
        name = "kvrt_cached_prompt_tokens_total"
        return after[name] - before[name]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("tenants")
    make_encoder("bert", folder / "encoder")
    Case("bert", folder / "judge")
    path = folder / "keys"
    keys = {
        "alice": add_key(path, "alice", workspace="acme"),
        "anna": add_key(path, "anna", workspace="acme"),
        "bob": add_key(path, "bob", workspace="rivals"),
        "eve": add_key(path, "eve"),
        "rita": add_key(path, "rita", "admin", workspace="rivals"),
        "admin": add_key(path, "boss", "admin"),
    }
    options = ["--keys", str(path), "--batches", str(folder / "state"), "--usage",
               str(folder / "usage"), "--response-cache", "1MiB", "--embed-model",
               str(folder / "encoder"), "--rerank-model", str(folder / "judge")]  # fmt: skip
    with started(folder, *options) as server:
        found = Place(server, keys, {})
        found.ids = _had_by_alice(found)
        yield found


def _had_by_alice(place: Place) -> dict[str, str]:
    """A file, a batch that is over, and its output."""
    with place.server.client(api_key=place.keys["alice"]) as client:
        line = {"custom_id": "canary-line", "method": "POST", "url": TEXT, "body": FILE}
        data = json.dumps(line).encode()
        file = client.files.create(file=("canary-name.jsonl", data), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id,
            endpoint=TEXT,
            completion_window="24h",
            metadata={"what": "canary-metadata"},
        )
        until(lambda: client.batches.retrieve(batch.id).status == "completed", 60)
        output = client.batches.retrieve(batch.id).output_file_id
        client.completions.create(
            **{**FILE, "model": "tiny"},  # type: ignore[call-overload]
            extra_headers={"x-request-id": "canary-request"},
        )
    assert output is not None
    return {"file": file.id, "input": file.id, "batch": batch.id, "output": output}


def request_of(key: str, how: Any, ids: dict[str, str]) -> tuple[str, str, object]:
    """Method, path and body, with what is alice's where something is asked for by its id."""
    method, _, path = key.partition(" ")
    path = path.replace("{name:path}", "tiny").replace("/keys/{name}", "/keys/alice")
    body: object = None
    match how:
        case InCharge():
            body = how.body
        case Going():
            path = path.replace("{id}", "canary-request")
        case Asks():
            body = how.body(SECRET * 4)
        case Owned("input"):
            body = {"input_file_id": ids["input"], "endpoint": TEXT, "completion_window": "24h"}
        case Owned(what):
            path = path.replace("{id}", ids[what])
        case Lists(query):
            path += query
        case Makes(make):
            body = make()
    return method, path, body


@pytest.mark.promise("P30")
@pytest.mark.parametrize("who", ["bob", "eve", "rita"])
def test_no_route_tells_another_workspace_of_what_one_has(place: Place, who: str) -> None:
    secrets = {*place.ids.values(), "canary", "alice", "acme", "anna"}
    for key, how in TABLE.items():
        method, path, body = request_of(key, how, place.ids)
        if method == "WS":
            continue
        status, told = place.ask(who, method, path, body)
        wanted = {200}
        match how:
            case Owned(what):
                wanted = {400 if what == "input" else 404}
            case ForAdmins():
                wanted = {403}
            case InCharge(other):
                wanted = {other if who == "rita" else 403}
            case Going():
                wanted = {404}
            case Makes() if path == "/v1/files":
                wanted = {400}
            case Makes() if "/audio/" in path or path == "/moves":  # it has no model, or stream
                wanted = {404}
        assert status in wanted, (key, status, told)
        found = [secret for secret in secrets if secret in told]
        assert not found, (key, found, told)


@pytest.mark.promise("P30")
@pytest.mark.parametrize("key", ASKED)
def test_what_one_has_asked_is_found_again_by_its_own_workspace_alone(
    place: Place, key: str
) -> None:
    how, (kind, _, path) = TABLE[key], key.partition(" ")
    assert isinstance(how, Asks)
    body = how.body(f"w2 {key} " * 8 + SECRET)
    found = [place.cached(who, kind, path, body) for who in ("alice", "bob", "eve", "anna", "bob")]
    assert found[:3] == [0, 0, 0]
    assert min(found[3:]) > 0


@pytest.mark.promise("P30")
def test_what_a_batch_has_asked_is_found_again_by_its_own_workspace_alone(place: Place) -> None:
    found = [place.cached(who, "POST", TEXT, FILE) for who in ("eve", "anna")]
    assert found[0] == 0
    assert found[1] > 0


@pytest.mark.promise("P30")
@pytest.mark.parametrize("key", [key for key in ASKED if not key.startswith("WS")])
def test_answers_are_kept_for_their_own_workspace_alone(place: Place, key: str) -> None:
    how, (_, _, path) = TABLE[key], key.partition(" ")
    assert isinstance(how, Asks)
    body, found = how.body(f"w3 {key} " + SECRET), []
    for who in ("alice", "bob", "anna", "eve"):
        headers = {"Authorization": f"Bearer {place.keys[who]}", "x-kvrt-cache": "on"}
        found.append(place.server.ask("POST", path, body, headers)[1]["x-kvrt-cache"])
    assert found == ["miss", "miss", "hit", "miss"]


@pytest.mark.promise("P30")
def test_keys_of_one_workspace_have_the_same(place: Place) -> None:
    """The last test of these: it deletes what alice has."""
    listed = [place.ask("anna", "GET", path)[1] for path in ("/v1/files", "/v1/batches", "/usage")]
    assert place.ids["file"] in listed[0]
    assert "canary-metadata" in listed[1]
    assert "alice" in listed[2]
    for key, how in TABLE.items():
        if not isinstance(how, Owned):
            continue
        if how.what == "input":  # what is begun is to end before its file is deleted
            with place.server.client(api_key=place.keys["anna"]) as client:
                begun = client.batches.create(
                    input_file_id=place.ids["file"], endpoint=TEXT, completion_window="24h"
                )
                until(lambda id=begun.id: client.batches.retrieve(id).status == "completed", 60)  # type: ignore[misc]
            continue
        method, path, body = request_of(key, how, place.ids)
        status, told = place.ask("anna", method, path, body)
        assert status == how.status, (key, told)
