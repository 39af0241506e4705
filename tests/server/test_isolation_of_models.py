"""Nothing of one workspace is seen by another where a server has several models, either."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from kvrt.config import RuntimeConfig
from kvrt.server.access.keys import add_key
from kvrt.server.config import ServerConfig
from kvrt.server.desk import Desk
from kvrt.server.fleet.app import ABOUT, make_models_app
from kvrt.server.fleet.opening import open_models
from kvrt.server.openai.audio import Audio
from kvrt.server.openai.embeddings import Embeddings
from kvrt.server.rerank import Rerank

from .conftest import Server, started, until
from .test_isolation import SECRET, TABLE, Asks, ForAdmins, Makes, Same, request_of, routes_of
from .test_models import save_variant
from .test_sockets import connected

OWN: dict[str, Any] = {
    "GET /models/sse": Same(),  # what becomes of models
    **{f"WS {path}": TABLE[f"POST {path}"] for path in (*ABOUT, "/responses/input_tokens")},
    **{f"POST /models/{what}": ForAdmins() for what in ("load", "wake", "sleep", "unload")},
}
"""Routes that only such a server has."""

IDS = ("input", "file", "output", "batch")
HERE = (
    "POST /v1/completions", "POST /v1/chat/completions", "POST /v1/messages", "POST /v1/responses",
    "POST /api/chat", "POST /api/generate", "WS /v1/completions",
)  # fmt: skip


@pytest.mark.promise("P30")
def test_every_route_is_in_a_table() -> None:
    names = {"strict": False, "any_name": False}

    async def found() -> list[str]:
        config = RuntimeConfig(model="tiny", backend="cpu", memory_limit="256MiB")
        models = await open_models({"tiny": config}, None, Desk(ServerConfig()))
        try:
            beside = Embeddings(None, **names), Rerank(None, **names), Audio(None, **names)
            return list(routes_of(make_models_app(models, *beside)))
        finally:
            await models.close()

    routes = asyncio.run(found())
    assert {*OWN, *HERE} <= {*routes}
    assert {*routes} <= {*TABLE, *OWN}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("tenants")
    for name in ("tiny", "other"):
        save_variant(folder / "models" / name, 2, 1.0)
    path = folder / "keys"
    keys = {
        "alice": add_key(path, "alice", workspace="acme"),
        "anna": add_key(path, "anna", workspace="acme"),
        "bob": add_key(path, "bob"),
        "admin": add_key(path, "boss", "admin"),
    }
    options = ["--models", str(folder / "models"), "--keys", str(path), "--usage",
               str(folder / "usage"), "--memory-limit", "256MiB", "--response-cache", "1MiB",
               "--chat-template", "plain"]  # fmt: skip
    model = str(folder / "models" / "tiny")
    with started(folder, *options, model=model) as server:
        yield server, keys


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def rows(server: Server, key: str) -> list[Any]:
    told = json.loads(server.ask("GET", "/usage?detail=requests", headers=bearer(key))[2])
    found: list[Any] = told["data"]
    return found


@pytest.mark.promise("P30")
@pytest.mark.parametrize("key", HERE)
def test_what_one_has_asked_is_found_again_by_its_own_workspace_alone(
    keyed: tuple[Server, dict[str, str]], key: str
) -> None:
    server, keys = keyed
    how, (kind, _, path) = TABLE[key], key.partition(" ")
    assert isinstance(how, Asks)
    body, found = how.body(f"w2 {key} " * 8 + SECRET), []
    for who in ("alice", "bob", "anna", "bob"):
        before = len(rows(server, keys["admin"]))
        if kind == "WS":
            with connected(server, path, keys[who]) as client:
                client.say(body)
                assert "error" not in client.answer()[-1]
        else:
            headers = {**bearer(keys[who]), "x-kvrt-cache": "off"}
            status, _, told = server.ask(kind, path, body, headers)
            assert status == 200, told
        until(lambda before=before: len(rows(server, keys["admin"])) > before)  # type: ignore[misc]
        found.append(rows(server, keys["admin"])[-1]["cached_tokens"])
        if kind == "WS":
            continue
        headers["x-kvrt-cache"] = "on"
        kept = server.ask(kind, path, body, headers)[1]["x-kvrt-cache"]
        assert kept == ("hit" if len(found) > 2 else "miss"), (who, found)
        until(lambda before=before: len(rows(server, keys["admin"])) > before + 1)  # type: ignore[misc]
    assert found[:2] == [0, 0]
    assert min(found[2:]) > 0


@pytest.mark.promise("P30")
def test_no_route_tells_another_workspace_of_what_one_has(
    keyed: tuple[Server, dict[str, str]],
) -> None:
    server, keys = keyed
    asked = {"model": "tiny", "prompt": SECRET, "max_tokens": 2}
    headers = {**bearer(keys["alice"]), "x-request-id": "canary-request"}
    assert server.ask("POST", "/v1/completions", asked, headers)[0] == 200
    until(lambda: bool(rows(server, keys["alice"])))
    for key, how in {**TABLE, **OWN}.items():
        method, path, body = request_of(key, how, dict.fromkeys(IDS, "x"))
        if method == "WS" or path == "/models/sse":  # which never ends
            continue
        status, head, data = server.ask(method, path, body, bearer(keys["bob"]))
        told = f"{head} {data.decode(errors='replace')}"
        assert status == 403 if isinstance(how, ForAdmins) and key in OWN else status < 500, key
        if not isinstance(how, Makes):
            found = [each for each in ("canary", "alice", "acme", "anna") if each in told]
            assert not found, (key, found)
