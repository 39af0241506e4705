"""``kvrt embed``."""

import json
from pathlib import Path

import numpy as np
import pytest

from kvrt import Embedder
from tests.embedding.encoders import make_encoder

from .conftest import Kvrt


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("encoder")
    make_encoder("bert", path)
    return str(path)


def test_each_text_becomes_a_line(kvrt: Kvrt, folder: str) -> None:
    with Embedder(Path(folder), backend="cpu", pooling="max", normalize=False) as embedder:
        want = embedder.embed(["w1 w2", "w3"], dimensions=8)
    options = ("--backend", "cpu", "--pooling", "max", "--no-normalize", "--dimensions", "8")
    as_words = kvrt("embed", folder, "w1 w2", "w3", *options)
    as_lines = kvrt("embed", folder, *options, input=b"w1 w2\nw3\n")
    assert as_words.stdout == as_lines.stdout
    lines = [json.loads(line) for line in as_words.stdout.splitlines()]
    assert [line["index"] for line in lines] == [0, 1]
    assert [line["tokens"] for line in lines] == [*want.tokens]
    made = np.array([line["embedding"] for line in lines], np.float32)
    assert (made == want.vectors).all()


def test_a_text_that_is_too_long_is_refused_unless_it_may_be_cut(kvrt: Kvrt, folder: str) -> None:
    long = "w1 " * 100
    refused = kvrt("embed", folder, long, "--backend", "cpu")
    assert refused.exit_code == 2
    assert "102 tokens" in refused.stderr
    cut = kvrt("embed", folder, long, "--backend", "cpu", "--truncate")
    assert json.loads(cut.stdout)["tokens"] == 70


def test_a_decoder_makes_vectors_too(kvrt: Kvrt) -> None:
    result = kvrt("embed", "tiny", "x", "--backend", "cpu")
    assert result.exit_code == 0, result.stderr
    assert len(json.loads(result.stdout)["embedding"]) > 1


def test_a_model_that_makes_no_states_is_refused(kvrt: Kvrt, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["T5Model"]}')
    result = kvrt("embed", str(tmp_path), "x", "--backend", "cpu")
    assert result.exit_code == 3
    assert "'T5Model', which is no supported encoder" in result.stderr
