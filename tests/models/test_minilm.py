"""A trained encoder, as people have it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import kvrt
from tests.models.real import MINILM, ROOT, here

pytestmark = pytest.mark.extra


def paragraphs(path: Path) -> list[str]:
    return [part for part in path.read_text().split("\n\n") if part.strip()]


def test_vectors_of_all_minilm_are_those_of_transformers() -> None:
    folder = here(MINILM / "model.safetensors").parent
    texts = ["", *paragraphs(ROOT / "README.md"), *paragraphs(ROOT / "docs" / "memory.md")]
    with kvrt.Embedder(folder, backend="cpu") as embedder:
        assert (embedder.pooling, embedder.normalize, embedder.longest) == ("mean", True, 256)
        made = embedder.embed(texts, truncate=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reference = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    for text, vector, count in zip(texts, made.vectors, made.tokens, strict=True):
        ids = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        assert ids["input_ids"].shape[1] == count
        with torch.no_grad():
            mean = reference(**ids).last_hidden_state[0].mean(0)
        assert np.abs(vector - (mean / mean.norm()).numpy()).max() < 1e-5
