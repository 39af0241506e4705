"""Decoders make vectors of texts, as transformers' do."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

from kvrt import Embedder, ModelError
from kvrt.embedding.decoding import STEP_TOKENS
from tests.embedding.encoders import SPECIAL, WORDS, save_recipe, save_words
from tests.model.checkpoints import BASE, FAMILIES, randomised, save_model

KINDS = ("qwen-3", "mistral", "gemma-3", "llama-3", "gpt-2", "qwen-3-moe")
TEXTS = ["w1 w2 w3", "w4", " ".join(WORDS[:50]), "w7 w7 w7 w7 nothing"]


def ids_of(text: str) -> list[int]:
    vocab = {token: number for number, token in enumerate([*SPECIAL, *WORDS])}
    return [2, *(vocab.get(word, 1) for word in text.split()), 3]


def make(kind: str, folder: Path, **changes: Any) -> PreTrainedModel:
    """transformers' own model without a head, and its folder."""
    settings = {**BASE, **FAMILIES[kind], "vocab_size": len(SPECIAL) + len(WORDS), **changes}
    torch.manual_seed(0)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = randomised(AutoModel.from_config(config, attn_implementation="eager").eval())
    save_model(model, folder)
    save_words(folder)
    return model


def states(reference: PreTrainedModel, text: str) -> Tensor:
    with torch.no_grad():
        return reference(torch.tensor([ids_of(text)])).last_hidden_state[0]


def near(vector: Any, want: Tensor) -> bool:
    return bool(np.abs(vector - want.numpy()).max() < 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    reference = make(kind, tmp_path)
    for pooling in ("last", "mean"):
        with Embedder(tmp_path, backend="cpu", pooling=pooling) as embedder:  # type: ignore[arg-type]
            made = embedder.embed(TEXTS)
            assert embedder.longest == 256
        for text, vector in zip(TEXTS, made.vectors, strict=True):
            own = states(reference, text)
            want = own[-1] if pooling == "last" else own.mean(0)
            assert near(vector, want / want.norm())


def test_the_last_state_is_taken_where_no_file_says_another(tmp_path: Path) -> None:
    make("qwen-3", tmp_path)
    with Embedder(tmp_path, backend="cpu") as embedder:
        assert embedder.pooling == "last"


def test_a_text_of_many_steps_and_one_among_many_have_the_same_bits(tmp_path: Path) -> None:
    make("mistral", tmp_path, max_position_embeddings=2 * STEP_TOKENS)
    long = " ".join(WORDS * (STEP_TOKENS // len(WORDS) + 2))
    with Embedder(tmp_path, backend="cpu") as embedder:
        alone = [embedder.embed(text).vectors[0] for text in TEXTS]
        made = embedder.embed([*TEXTS, long, *TEXTS * 80])
        assert made.tokens[len(TEXTS)] > STEP_TOKENS
        for number, vector in enumerate(made.vectors):
            if number != len(TEXTS):
                at = number if number < len(TEXTS) else number - 1
                assert (vector == alone[at % len(TEXTS)]).all()
        assert np.isfinite(made.vectors).all()


def test_matrices_behind_the_pooling_are_multiplied(tmp_path: Path) -> None:
    reference = make("gemma-3", tmp_path)
    save_recipe(
        tmp_path,
        {"pooling_mode": "mean"},
        steps=("Transformer", "Pooling", "Dense", "Dense", "Normalize"),
    )
    matrices, biases = [torch.randn(80, 64) / 8, torch.randn(24, 80) / 8], torch.randn(24)
    for number, matrix, name in ((2, matrices[0], "Tanh"), (3, matrices[1], "ReLU")):
        config = {
            "in_features": matrix.shape[1],
            "out_features": len(matrix),
            "bias": number == 3,
            "activation_function": f"torch.nn.modules.activation.{name}",
        }
        folder = tmp_path / f"{number}_Dense"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        bias = {"linear.bias": biases} if number == 3 else {}
        save_file({"linear.weight": matrix, **bias}, folder / "model.safetensors")
    with Embedder(tmp_path, backend="cpu") as embedder:
        assert embedder.dimensions == 24
        made = embedder.embed(TEXTS).vectors
    for text, vector in zip(TEXTS, made, strict=True):
        first = torch.tanh(matrices[0] @ states(reference, text).mean(0))
        want = torch.relu(matrices[1] @ first + biases)
        assert near(vector, want / want.norm())
    (tmp_path / "3_Dense" / "config.json").write_text(json.dumps(config | {"in_features": 81}))
    with pytest.raises(ModelError, match=r"in_features.*vectors have 80"):
        Embedder(tmp_path, backend="cpu")


def test_a_prompt_is_not_pooled_where_the_files_say_so(tmp_path: Path) -> None:
    reference = make("qwen-3", tmp_path)
    said = {"pooling_mode": "mean", "include_prompt": False}
    save_recipe(tmp_path, said, prompts={"query": "w5 w6 "})
    with Embedder(tmp_path, backend="cpu") as embedder:
        made = embedder.embed("w1 w2", prompt="query").vectors[0]
        plain = embedder.embed("w1 w2").vectors[0]
    want = states(reference, "w5 w6 w1 w2")[3:].mean(0)
    assert near(made, want / want.norm())
    want = states(reference, "w1 w2").mean(0)
    assert near(plain, want / want.norm())


@pytest.mark.parametrize("field", [{"is_causal": False}, {"use_bidirectional_attention": True}])
def test_a_decoder_that_also_sees_what_comes_later_is_refused(
    tmp_path: Path, field: dict[str, Any]
) -> None:
    make("qwen-3", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | field))
    with pytest.raises(ModelError, match=f"{next(iter(field))} makes tokens see"):
        Embedder(tmp_path, backend="cpu")
