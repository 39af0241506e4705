"""Adapters are models of their own to clients: named at the start, or loaded later by admins."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from kvrt import ConfigError, Runtime, SamplingParams
from kvrt.model.spec import ModelSpec
from kvrt.server.access.keys import add_key
from kvrt.server.config import ServerConfig
from tests.model.adapters import Matrices, save_adapter

from .conftest import MESSAGES, PROMPT, Server, started

NEW = 12
ASKED: dict[str, Any] = {"prompt": PROMPT, "max_tokens": NEW, "temperature": 0}


def matrices(spec: ModelSpec, seed: int) -> Matrices:
    random = torch.Generator().manual_seed(seed)
    shape = spec.hidden, spec.intermediate
    return {
        f"model.layers.{layer}.mlp.down_proj": (
            torch.randn(4, shape[1], generator=random) * shape[1] ** -0.5,
            torch.randn(shape[0], 4, generator=random),
        )
        for layer in range(len(spec.layers))
    }


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Folders of two adapters, by their names, and what the model says with each and without."""
    folder = tmp_path_factory.mktemp("adapters")
    found: dict[str, Any] = {}
    params = SamplingParams(max_tokens=NEW, temperature=0)
    with Runtime("tiny", backend="cpu", memory_limit="256MiB") as runtime:
        found["tiny"] = runtime.generate([PROMPT], params)[0].text
        for seed, name in enumerate(("law", "tax")):
            path = save_adapter(folder / name, matrices(runtime.model.spec, seed))
            runtime.load_adapter(name, path)
            found[name] = runtime.generate([PROMPT], params, adapter=name)[0].text
            found[f"{name} path"] = str(path)
    assert len({found[name] for name in ("tiny", "law", "tax")}) == 3
    return found


@pytest.fixture(scope="module")
def server(said: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with started(folder, "--lora", f"law={said['law path']}", "--response-cache", "1MiB") as server:
        yield server


def names(server: Server) -> list[str]:
    return [each.id for each in server.client().models.list().data]


def test_the_name_of_an_adapter_asks_it_on_every_route(
    server: Server, said: dict[str, Any]
) -> None:
    client = server.client()
    for name in ("law", "tiny"):
        assert client.completions.create(model=name, **ASKED).choices[0].text == said[name]
    answers = {}
    for name in ("law", "tiny"):
        bodies: dict[str, dict[str, Any]] = {
            "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": NEW, "temperature": 0},
            "/v1/messages": {"messages": MESSAGES, "max_tokens": NEW, "temperature": 0},
            "/v1/responses": {"input": "Say something.", "max_output_tokens": NEW,
                              "temperature": 0},
            "/api/chat": {"messages": MESSAGES, "stream": False,
                          "options": {"num_predict": NEW, "temperature": 0}},
        }  # fmt: skip
        for route, body in bodies.items():
            status, answer = server.post(route, {"model": name, **body})
            assert status == 200, answer
            for key in ("choices", "content", "output", "message"):
                if key in answer:
                    text = json.dumps(answer[key]).replace(answer.get("id", "-"), "")
                    answers[name, route] = "".join(t for t in text.split('"') if "msg_" not in t)
    for route in bodies:
        assert answers["law", route] != answers["tiny", route]


def test_adapters_come_and_go_while_the_server_runs(server: Server, said: dict[str, Any]) -> None:
    client = server.client()
    kept = {"x-kvrt-cache": "on"}
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="tax", **ASKED)
    assert names(server) == ["tiny", "law"]
    load = {"lora_name": "tax", "lora_path": said["tax path"]}
    assert server.ask("POST", "/v1/load_lora_adapter", load)[0] == 200
    assert names(server) == ["tiny", "law", "tax"]
    assert server.ask("GET", "/v1/models/tax")[0] == 200
    for _ in range(2):
        made = client.completions.create(model="tax", **ASKED, extra_headers=kept)
        assert made.choices[0].text == said["tax"]
    assert server.ask("POST", "/v1/load_lora_adapter", load)[0] == 400
    unload = {"lora_name": "tax"}
    assert server.ask("POST", "/v1/unload_lora_adapter", unload)[0] == 200
    assert server.ask("POST", "/v1/unload_lora_adapter", unload)[0] == 404
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="tax", **ASKED)
    # Another of the same name is another, also to answers that are kept.
    other = {"lora_name": "tax", "lora_path": said["law path"]}
    assert server.ask("POST", "/v1/load_lora_adapter", other)[0] == 200
    made = client.completions.create(model="tax", **ASKED, extra_headers=kept)
    assert made.choices[0].text == said["law"]
    assert server.ask("POST", "/v1/unload_lora_adapter", unload)[0] == 200


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"lora_path": "/no/such/folder"}, "lora_path"),
        ({"lora_name": "tiny"}, "lora_name"),
        ({"lora_name": ""}, "lora_name"),
        ({"lora_path": "x" * 5000}, "lora_path"),
        ({"lora_name": "a", "lora_path": 3}, "lora_path"),
    ],
)
def test_what_is_no_adapter_is_refused(
    server: Server, said: dict[str, Any], changed: dict[str, Any], param: str
) -> None:
    body = {"lora_name": "other", "lora_path": said["tax path"], **changed}
    status, answer = server.post("/v1/load_lora_adapter", body)
    assert (status, answer["error"]["param"]) == (400, param)
    assert names(server) == ["tiny", "law"]


def test_only_admins_load_adapters(said: dict[str, Any], tmp_path: Path) -> None:
    keys = {role: add_key(tmp_path / "keys", f"{role}-1", role) for role in ("user", "admin")}  # type: ignore[arg-type]
    body = {"lora_name": "tax", "lora_path": said["tax path"]}
    with started(tmp_path, "--keys", str(tmp_path / "keys")) as server:
        for role, status in (("user", 403), ("admin", 200)):
            headers = {"Authorization": f"Bearer {keys[role]}"}
            assert server.ask("POST", "/v1/load_lora_adapter", body, headers)[0] == status
    (tmp_path / "open").mkdir()
    with started(tmp_path / "open", "--without-keys", "--host", "0.0.0.0") as server:
        assert server.ask("POST", "/v1/load_lora_adapter", body)[0] == 403


@pytest.mark.parametrize("lora", [("law",), ("=x",), ("law=",), ("law=a", "law=b")])
def test_an_adapter_is_named_once_with_its_path(lora: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="NAME=PATH"):
        ServerConfig(lora=lora)
