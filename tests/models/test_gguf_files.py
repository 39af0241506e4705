"""Real GGUF files: what is in them is read as the format's own library reads it."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from kvrt.model.checkpoint.blocks import blocks, mapped
from kvrt.model.gguf.files import open_gguf
from kvrt.model.gguf.tokens import KINDS, read_tokenizer
from tests.model.ggufs import joined_by_score
from tests.models.real import GEMMA, ROOT, SMOLLM, here, numbers

pytestmark = pytest.mark.extra

VOCABULARIES = Path(os.environ.get("LLAMA_CPP_MODELS", "."))
"""A folder of llama.cpp's ``ggml-vocab-*.gguf`` with texts (.inp) and ids (.out) beside them."""

REFUSED = ("deepseek-llm",)
"""Ways to cut text that kvrt does not know."""


@pytest.mark.parametrize("path", [SMOLLM, GEMMA], ids=lambda path: path.stem)
def test_every_tensor_has_the_numbers_that_the_reference_reads(path: Path) -> None:
    gguf = open_gguf(here(path))
    for name, want in numbers(path).items():
        entry = gguf.tensors[name][1]
        pieces = [piece for _, some in blocks(mapped(path), entry, 1 << 20) for piece in some]
        got = torch.cat(pieces).float().numpy()
        assert np.array_equal(got.view(np.uint32), want.reshape(-1).view(np.uint32)), name


@pytest.mark.parametrize("path", [SMOLLM, GEMMA], ids=lambda path: path.stem)
def test_a_header_is_opened_in_half_a_second(path: Path) -> None:
    here(path)
    started = time.process_time()
    gguf = open_gguf(path)
    assert time.process_time() - started < 0.5
    assert gguf.tensors


def test_gemmas_words_are_joined_by_the_scores_in_the_file() -> None:
    gguf = open_gguf(here(GEMMA))
    tokenizer = read_tokenizer(gguf, 1 << 20)
    assert tokenizer is not None
    keys = gguf.keys
    scores = dict(zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.scores"], strict=True))
    for line in (ROOT / "README.md").read_text().splitlines():
        if "  " not in line and "<" not in line:  # which are tokens of their own
            want = joined_by_score(line.replace(" ", "▁"), scores)
            assert [tokenizer.token(id) for id in tokenizer.encode(line, special=False)] == want


def test_the_ids_of_llama_cpps_vocabularies_are_its_own() -> None:
    checked = 0
    for path in sorted(VOCABULARIES.glob("ggml-vocab-*.gguf")):
        texts = path.with_name(path.name + ".inp")
        gguf = open_gguf(path)
        known = gguf.keys["tokenizer.ggml.model"] in KINDS
        if not texts.exists() or not known or gguf.keys.get("tokenizer.ggml.pre") in REFUSED:
            continue
        tokenizer = read_tokenizer(gguf, 1 << 20)
        assert tokenizer is not None
        parts = texts.read_bytes().decode().split("\n__ggml_vocab_test__\n")
        lines = path.with_name(path.name + ".out").read_text().splitlines()
        for text, line in zip(parts, lines, strict=False):
            ids = tokenizer._tokenizer.encode(text, add_special_tokens=False).ids
            assert ids == [int(word) for word in line.split()], (path.name, text)
            checked += 1
    if not checked:
        pytest.skip("LLAMA_CPP_MODELS names no folder of llama.cpp's vocabularies")
