"""``kvrt rerank``."""

import json
from pathlib import Path

from kvrt import Reranker
from tests.embedding.test_reranker import QUERY, TEXTS, Case

from .conftest import Kvrt


def test_texts_are_lines_and_the_best_is_the_first(kvrt: Kvrt, tmp_path: Path) -> None:
    Case("bert", tmp_path)
    with Reranker(tmp_path, backend="cpu") as reranker:
        ranking = reranker.rank(QUERY, TEXTS[:3])
    args = ("rerank", str(tmp_path), QUERY, "--backend", "cpu")
    as_words = kvrt(*args, *TEXTS[:3])
    as_lines = kvrt(*args, input="\n".join(TEXTS[:3]).encode())
    assert as_words.exit_code == 0, as_words.stderr
    assert as_words.stdout == as_lines.stdout
    lines = [json.loads(line) for line in as_words.stdout.splitlines()]
    assert [line["index"] for line in lines] == [*ranking.order]
    for line in lines:
        at = line["index"]
        assert (line["score"], line["tokens"]) == (ranking.scores[at], ranking.tokens[at])
        assert line["text"] == TEXTS[at]
    best = kvrt(*args, *TEXTS[:3], "--top", "1")
    assert best.stdout.splitlines() == as_words.stdout.splitlines()[:1]
    refused = kvrt(*args, "w1 " * 100)
    assert refused.exit_code == 2
    assert kvrt(*args, "w1 " * 100, "--truncate").exit_code == 0
