"""Texts sorted, as clients of Jina and Cohere ask for it."""

from pathlib import Path

from kvrt import Reranker
from tests.embedding.test_reranker import QUERY, SECRET, TEXTS, Case

from .conftest import Serve, Server


def test_texts_are_sorted_in_the_words_of_jina_and_cohere(tmp_path: Path, serve: Serve) -> None:
    Case("bert", tmp_path / "judge")
    with Reranker(tmp_path / "judge", backend="cpu") as reranker:
        want = reranker.rank(QUERY, TEXTS)
    server = serve("--rerank-model", str(tmp_path / "judge"))
    asked = {"model": "judge", "query": QUERY, "documents": TEXTS}
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        status, body = server.post(path, asked)
        assert status == 200
        assert [one["index"] for one in body["results"]] == [*want.order]
        for one in body["results"]:
            assert one["relevance_score"] == want.scores[one["index"]]
            assert "document" not in one
        assert body["usage"]["total_tokens"] == sum(want.tokens)
        assert body["meta"]["tokens"]["input_tokens"] == sum(want.tokens)
    objects = {"documents": [{"text": text} for text in TEXTS], "top_n": 2,
               "return_documents": True}  # fmt: skip
    status, body = server.post("/v1/rerank", asked | objects)
    assert [one["document"]["text"] for one in body["results"]] == [
        TEXTS[index] for index in want.order[:2]
    ]
    long = {"documents": [SECRET * 40]}
    assert server.post("/v1/rerank", asked | long)[0] == 200
    for fields, status, param in (
        (long | {"truncate": False}, 400, "texts"),
        ({"documents": []}, 400, "documents"),
        ({"documents": [7]}, 400, "documents[0]"),
        ({"query": ""}, 400, "query"),
        ({"top_n": 0}, 400, "top_n"),
        ({"model": "other"}, 404, "model"),
    ):
        said, body = server.post("/v1/rerank", asked | fields)
        assert (said, body["error"]["param"]) == (status, param)
        assert "secret" not in str(body)


def test_without_a_model_for_it_the_error_says_how_to_have_one(server: Server) -> None:
    status, body = server.post("/v1/rerank", {"model": "tiny", "query": "x", "documents": ["y"]})
    assert status == 404
    assert "--rerank-model" in body["error"]["message"]
