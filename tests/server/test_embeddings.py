"""Vectors of texts, as OpenAI's client asks for them."""

from pathlib import Path

import numpy as np
import openai
import pytest

from kvrt import Embedder
from tests.embedding.encoders import make_encoder

from .conftest import Serve, Server

TEXTS = ["w1 w2 w3", "w4"]


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    make_encoder("bert", tmp_path / "encoder")
    return tmp_path / "encoder"


def test_vectors_are_those_of_the_model(encoder: Path, serve: Serve) -> None:
    with Embedder(encoder, backend="cpu") as embedder:
        want = embedder.embed(TEXTS)
        ids = [[2, 5, 6, 3], [2, 3]]
        of_ids, short = embedder.embed(ids).vectors, embedder.embed(TEXTS, dimensions=7).vectors
    server = serve("--embed-model", str(encoder))
    # Its types know no vectors in base64, which it asks for, and makes numbers of behind its check.
    client = server.client(_strict_response_validation=False)
    made = client.embeddings.create(model="encoder", input=TEXTS)
    assert [each.index for each in made.data] == [0, 1]
    assert made.usage.prompt_tokens == sum(want.tokens)
    assert (np.array([each.embedding for each in made.data], np.float32) == want.vectors).all()
    as_numbers = client.embeddings.create(model="encoder", input=TEXTS, encoding_format="float")
    assert (np.array([e.embedding for e in as_numbers.data], np.float32) == want.vectors).all()
    one = client.embeddings.create(model="encoder", input=ids[0])
    two = client.embeddings.create(model="encoder", input=ids)
    assert (np.array(one.data[0].embedding, np.float32) == of_ids[0]).all()
    assert (np.array([each.embedding for each in two.data], np.float32) == of_ids).all()
    cut = client.embeddings.create(model="encoder", input=TEXTS, dimensions=7)
    assert (np.array([each.embedding for each in cut.data], np.float32) == short).all()
    secret = "w1 my secret words " * 40
    for fields, param in (
        ({"input": secret}, "texts"),
        ({"input": "w1", "dimensions": 1000}, "dimensions"),
        ({"input": []}, "input"),
        ({"input": ["w1", 4]}, "input"),
        ({"input": "w1", "prompt": "query"}, "prompt"),
    ):
        status, body = server.post("/v1/embeddings", {"model": "encoder", **fields})
        assert (status, body["error"]["param"]) == (400, param)
        assert "secret" not in str(body)
    assert (
        server.post("/v1/embeddings", {"model": "encoder", "input": secret, "truncate": True})[0]
        == 200
    )
    with pytest.raises(openai.NotFoundError, match="encoder"):
        client.embeddings.create(model="tiny", input="w1")
    client.close()


def test_a_server_without_such_a_model_says_how_to_have_one(server: Server) -> None:
    status, body = server.post("/v1/embeddings", {"model": "tiny", "input": "x"})
    assert status == 404
    assert "--embed-model" in body["error"]["message"]
