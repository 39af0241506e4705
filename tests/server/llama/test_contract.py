"""Answers have the shapes that the real llama-server's have, as they were recorded of it.

`ci/llama-server` records them anew, and asks the two side by side.
"""

import asyncio
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from kvrt import Embedder, Reranker
from kvrt.server.access.guard import Guard
from kvrt.server.beside import Beside
from kvrt.server.config import ServerConfig
from kvrt.server.desk import Desk
from kvrt.server.llama.app import make_vectors_app
from kvrt.server.llama.errors import words
from kvrt.server.llama.settings import Face
from tests.embedding.encoders import make_encoder
from tests.embedding.test_reranker import Case
from tests.server.conftest import Server
from tests.server.llama.contract import (
    ASKED,
    RANKS,
    VECTORS,
    Answer,
    Asked,
    ask,
    differences,
    told,
)

RECORDED: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "data" / "llama_server.json").read_text()
)


def test_answers_have_the_fields_and_types_of_the_real_server(face: Server) -> None:
    assert set(RECORDED["answers"]) == set(ASKED)
    wrong = {}
    for name, asked in ASKED.items():
        found = differences(name, RECORDED["answers"][name], ask(face, asked))
        wrong |= {name: found} if found else {}
    assert wrong == {}


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    folder = tmp_path_factory.mktemp("vectors")
    make_encoder("bert", folder / "encoder")
    Case("bert", folder / "judge")
    with (
        Embedder(folder / "encoder", backend="cpu") as embedder,
        Reranker(folder / "judge", backend="cpu") as reranker,
    ):
        yield Beside(embedder, reranker)


@pytest.mark.parametrize(("kind", "every"), [("vectors", VECTORS), ("ranks", RANKS)])
def test_vectors_and_sorted_texts_have_them_too(
    beside: Beside, kind: str, every: Mapping[str, Asked]
) -> None:
    async def asked_all() -> dict[str, Answer]:
        desk = Desk(ServerConfig())
        app = make_vectors_app(desk, Face(model_path="encoder"), beside, "encoder")
        guard = Guard(app, desk.book, "127.0.0.1", None, words)
        transport = httpx.ASGITransport(app=guard)
        answers: dict[str, Answer] = {}
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            for name, asked in every.items():
                method = "GET" if asked.body is None else "POST"
                said = await client.request(method, asked.path, json=asked.body)
                answers[name] = said.status_code, dict(said.headers), said.content
        return answers

    wrong = {}
    for name, answer in asyncio.run(asked_all()).items():
        found = differences(name, RECORDED[kind][name], told(answer))
        wrong |= {name: found} if found else {}
    assert wrong == {}
