"""Texts become the vectors that transformers makes of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from kvrt import ConfigError, Embedder, ModelError, RequestError
from kvrt.embedding.decoding import STEP_TOKENS
from kvrt.embedding.recipe import POOLINGS
from tests.embedding.encoders import KINDS, SPECIAL, WORDS, make_encoder, save_recipe

TEXTS = ["w1 w2 w3", "w4", "", " ".join(WORDS[:50]), "w7 w7 w7 w7 nothing"]
SECRET = "w1 my secret words"


def ids_of(text: str) -> list[int]:
    vocab = {token: number for number, token in enumerate([*SPECIAL, *WORDS])}
    return [2, *(vocab.get(word, 1) for word in text.split()), 3]


def states(reference: PreTrainedModel, text: str) -> Tensor:
    ids = ids_of(text)
    with torch.no_grad():
        return reference(torch.tensor([ids])).last_hidden_state[0]


POOLED: dict[str, Any] = {
    "cls": lambda h: h[0],
    "mean": lambda h: h.mean(0),
    "max": lambda h: h.max(0).values,
    "sqrt": lambda h: h.sum(0) / len(h) ** 0.5,
    "weighted": lambda h: (
        (h * torch.arange(1, len(h) + 1)[:, None]).sum(0) / torch.arange(1, len(h) + 1).sum()
    ),
    "last": lambda h: h[-1],
}


def near(vector: Any, want: Tensor) -> bool:
    return bool(np.abs(vector - want.numpy()).max() < 1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["cpu", "null"])
def test_vectors_are_those_of_transformers(tmp_path: Path, kind: str, backend: str) -> None:
    reference = make_encoder(kind, tmp_path)
    for pooling in POOLINGS:
        with Embedder(tmp_path, backend=backend, pooling=pooling) as embedder:  # type: ignore[arg-type]
            made = embedder.embed(TEXTS)
        assert made.vectors.dtype == np.float32
        assert made.tokens == tuple(len(ids_of(text)) for text in TEXTS)
        for text, vector in zip(TEXTS, made.vectors, strict=True):
            want = POOLED[pooling](states(reference, text))
            assert near(vector, want / want.norm())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_encoder("bert", tmp_path)
    return tmp_path


def test_a_vector_depends_on_nothing_but_its_text(folder: Path) -> None:
    many = TEXTS * (STEP_TOKENS // 40)
    with Embedder(folder, backend="cpu") as embedder:
        together = embedder.embed(many).vectors
        for number, text in enumerate(TEXTS):
            alone = embedder.embed(text).vectors
            assert alone.shape == (1, embedder.dimensions)
            assert all((row == alone[0]).all() for row in together[number :: len(TEXTS)])
            assert (embedder.embed([ids_of(text)]).vectors == alone).all()


def test_the_files_of_sentence_transformers_say_what_is_done(tmp_path: Path) -> None:
    reference = make_encoder("bert", tmp_path)
    save_recipe(
        tmp_path,
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        steps=("Transformer", "Pooling"),
        longest=9,
        prompts={"query": "w5 w6 ", "document": ""},
        prompt="document",
    )
    with Embedder(tmp_path, backend="cpu") as embedder:
        assert (embedder.pooling, embedder.normalize, embedder.longest) == ("cls", False, 9)
        plain = states(reference, "w1 w2")
        assert near(embedder.embed("w1 w2").vectors[0], plain[0])
        asked = embedder.embed("w1 w2", prompt="query").vectors[0]
        assert near(asked, states(reference, "w5 w6 w1 w2")[0])
        with pytest.raises(RequestError, match="9"):
            embedder.embed("w1 " * 8)
        cut = embedder.embed("w1 " * 8, truncate=True)
        assert cut.tokens == (9,)
        assert near(cut.vectors[0], states(reference, "w1 " * 7)[0])
        with pytest.raises(RequestError, match="query, document"):
            embedder.embed("w1", prompt="passage")
    with Embedder(tmp_path, backend="cpu", pooling="last", normalize=True) as embedder:
        want = plain[-1, :20] / plain[-1, :20].norm()
        assert near(embedder.embed("w1 w2", dimensions=20).vectors[0], want)


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "sqrt"),
        ({"pooling_mode_weightedmean_tokens": True}, "weighted"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": "attention"}, None),
        ({"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True}, None),
        ({}, None),
        ({"pooling_mode_max_tokens": 1}, None),
    ],
)
def test_each_kind_of_pooling_has_its_names(
    folder: Path, config: dict[str, Any], pooling: str | None
) -> None:
    save_recipe(folder, config)
    if pooling is None:
        with pytest.raises(ModelError, match="pooling"):
            Embedder(folder, backend="cpu")
        return
    with Embedder(folder, backend="cpu") as embedder:
        assert embedder.pooling == pooling


@pytest.mark.parametrize(
    "steps",
    [
        ("Transformer", "Pooling", "Normalize", "Dense"),
        ("Transformer",),
        ("Pooling", "Transformer"),
        (),
    ],
)
def test_steps_that_are_not_known_are_refused(folder: Path, steps: tuple[str, ...]) -> None:
    save_recipe(folder, {"pooling_mode": "mean"}, steps=steps)
    with pytest.raises(ModelError, match=r"modules\.json.*supported are Transformer"):
        Embedder(folder, backend="cpu")


def test_names_of_models_with_a_head_and_of_the_first_files_are_understood(folder: Path) -> None:
    with Embedder(folder, backend="cpu") as embedder:
        want = embedder.embed(TEXTS).vectors
    file = folder / "model.safetensors"
    old = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in load_file(file).items()
    }
    save_file(old | {"cls.predictions.bias": torch.ones(4)}, file)
    with Embedder(folder, backend="cpu") as embedder:
        assert (embedder.embed(TEXTS).vectors == want).all()


def test_damage_is_refused_by_name(folder: Path) -> None:
    file, name = folder / "model.safetensors", "encoder.layer.1.output.dense.weight"
    whole = load_file(file)
    for tensor, told in (
        (None, "is missing"),
        (torch.zeros(32, 47), r"F32 \[32, 47\]"),
        (torch.full((32, 48), torch.nan), "not finite"),
    ):
        changed = {**whole, name: tensor} if tensor is not None else dict(whole)
        if tensor is None:
            del changed[name]
        save_file(changed, file)
        with pytest.raises(ModelError, match=rf"encoder\.layer\.1\.output\.dense.*{told}"):
            Embedder(folder, backend="cpu")


def test_what_cannot_be_embedded_is_refused_and_never_quoted(folder: Path) -> None:
    bad: list[dict[str, Any]] = [
        {"texts": [SECRET * 40]},
        {"texts": [[1, 64]]},
        {"texts": [[]]},
        {"texts": [[True]]},
        {"texts": [b"secret"]},
        {"texts": 7},
        {"texts": "w1", "prompt": SECRET},
        {"texts": "w1", "dimensions": 33},
        {"texts": "w1", "dimensions": 0},
        {"texts": "w1", "truncate": 1},
    ]
    with Embedder(folder, backend="cpu") as embedder:
        for arguments in bad:
            with pytest.raises(RequestError) as raised:
                embedder.embed(**arguments)
            assert raised.value.param in arguments
            assert "secret" not in f"{raised.value} {raised.value.fix}"
        assert embedder.embed([]).vectors.shape == (0, 32)
    with pytest.raises(ConfigError, match="closed"):
        embedder.embed("w1")
    with pytest.raises(ConfigError, match="pooling"):
        Embedder(folder, pooling="middle")  # type: ignore[arg-type]
