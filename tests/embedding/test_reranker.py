"""Texts are sorted as transformers' models would sort them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from kvrt import ConfigError, Embedder, ModelError, RequestError, Reranker
from kvrt.embedding.judges import BEFORE, BEHIND, INSTRUCTION
from tests.embedding.encoders import KINDS, SHAPE, SPECIAL, WORDS, make_encoder
from tests.model.checkpoints import make_model, randomised, save_model

QUERY = "w9 w8"
TEXTS = ["w1 w2 w3", "w4", " ".join(WORDS[:40]), "", "w7 w7 w7 nothing"]
SECRET = "w1 my secret words"
CHAT = ["<|im_start|>", "<|im_end|>", "yes", "no", "<think>", "</think>"]


def save_pairs(folder: Path, words: list[str]) -> Tokenizer:
    """A tokenizer of whole words that puts two texts together as BERT's does."""
    vocab = {token: number for number, token in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


class Case:
    """A cross-encoder of transformers, and the folder it was written to."""

    def __init__(self, kind: str, folder: Path, **changes: Any) -> None:
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **{**SHAPE, "num_labels": 1, **changes})
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
        self.reference: PreTrainedModel = randomised(model.eval())
        self.folder = save_model(self.reference, folder)
        self.tokenizer = save_pairs(folder, WORDS)

    def logit(self, query: str, text: str) -> float:
        made = self.tokenizer.encode(query, text)
        kinds = torch.tensor([made.type_ids]).clamp(max=self.reference.config.type_vocab_size - 1)
        with torch.no_grad():
            said = self.reference(torch.tensor([made.ids]), token_type_ids=kinds).logits
        return float(said[0, 0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["cpu", "null"])
def test_scores_are_those_of_transformers(tmp_path: Path, kind: str, backend: str) -> None:
    case = Case(kind, tmp_path)
    with Reranker(tmp_path, backend=backend) as reranker:
        ranking = reranker.rank(QUERY, TEXTS)
    want = [case.logit(QUERY, text) for text in TEXTS]
    assert ranking.scores == pytest.approx(torch.tensor(want).sigmoid().tolist(), abs=1e-5)
    assert ranking.order == tuple(sorted(range(len(TEXTS)), key=lambda at: -want[at]))
    assert ranking.tokens[1] == 6


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case("bert", tmp_path)


def test_a_score_is_what_the_files_say(case: Case) -> None:
    path = case.folder / "config.json"
    config = json.loads(path.read_text())
    identity = "torch.nn.modules.linear.Identity"
    want = case.logit(QUERY, TEXTS[0])
    for said in (
        {"sentence_transformers": {"activation_fn": identity, "version": "5"}},
        {"sbert_ce_default_activation_function": identity},
    ):
        path.write_text(json.dumps(config | said))
        with Reranker(case.folder, backend="cpu") as reranker:
            assert reranker.rank(QUERY, TEXTS[:1]).scores[0] == pytest.approx(want, abs=1e-5)
    odd = {"sentence_transformers": {"activation_fn": "torch.nn.ReLU"}}
    path.write_text(json.dumps(config | odd))
    with pytest.raises(ModelError, match=r"activation_fn.*'ReLU'"):
        Reranker(case.folder, backend="cpu")


def test_a_score_depends_on_nothing_but_its_pair(case: Case) -> None:
    with Reranker(case.folder, backend="cpu") as reranker:
        together = reranker.rank(QUERY, TEXTS * 90).scores
        for number, text in enumerate(TEXTS):
            assert {*together[number :: len(TEXTS)]} == {*reranker.rank(QUERY, [text]).scores}
        assert reranker.rank(QUERY, []).order == ()


def test_of_a_text_that_is_too_long_the_end_is_left_out(case: Case) -> None:
    long = "w5 " * 100
    with Reranker(case.folder, backend="cpu") as reranker:
        with pytest.raises(RequestError, match="105 tokens"):
            reranker.rank(QUERY, [long])
        cut = reranker.rank(QUERY, [long], truncate=True)
        with pytest.raises(RequestError) as refused:
            reranker.rank(long, ["w1"], truncate=True)
    assert refused.value.param == "query"
    assert cut.tokens == (70,)
    want = torch.tensor(case.logit(QUERY, "w5 " * 65)).sigmoid()
    assert cut.scores[0] == pytest.approx(float(want), abs=1e-5)


def test_a_bad_question_is_refused_and_never_quoted(case: Case) -> None:
    bad: list[dict[str, Any]] = [
        {"query": QUERY, "texts": [SECRET * 40]},
        {"query": QUERY, "texts": [7]},
        {"query": QUERY, "texts": SECRET},
        {"query": 7, "texts": [SECRET]},
        {"query": QUERY, "texts": ["w1"], "truncate": 1},
        {"query": QUERY, "texts": ["w1"], "instruction": 1},
    ]
    with Reranker(case.folder, backend="cpu") as reranker:
        for arguments in bad:
            with pytest.raises(RequestError) as raised:
                reranker.rank(**arguments)
            assert raised.value.param in arguments
            assert "secret" not in f"{raised.value} {raised.value.fix}"
    with pytest.raises(ConfigError, match="closed"):
        reranker.rank(QUERY, TEXTS)


def test_models_for_something_else_are_refused(tmp_path: Path) -> None:
    make_encoder("bert", tmp_path / "encoder")
    with pytest.raises(ModelError, match="has no head that compares"):
        Reranker(tmp_path / "encoder", backend="cpu")
    Case("bert", tmp_path / "labels", num_labels=3)
    with pytest.raises(ModelError, match="3 labels; supported is 1"):
        Reranker(tmp_path / "labels", backend="cpu")
    Case("bert", tmp_path / "pairs")
    with pytest.raises(ModelError, match="compares texts, and makes no vectors"):
        Embedder(tmp_path / "pairs", backend="cpu")
    with pytest.raises(ModelError, match="has no token for yes"):
        Reranker("tiny", backend="cpu")


# --- decoders that say yes or no ----------------------------------------------------------------


@pytest.fixture
def decoder(tmp_path: Path) -> Iterator[tuple[PreTrainedModel, Tokenizer]]:
    words = [*CHAT, *WORDS, "<Query>:", "<Document>:", "<Instruct>:"]
    model = make_model("qwen-3", vocab_size=len(SPECIAL) + len(words), tie_word_embeddings=True)
    save_model(model, tmp_path)
    tokenizer = save_pairs(tmp_path, words)
    tokenizer.add_special_tokens(CHAT[:2])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return model, tokenizer


def share_of_yes(
    model: PreTrainedModel, tokenizer: Tokenizer, query: str, text: str, instruction: str
) -> float:
    """As the model's card computes it."""

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    asked = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {text}"
    tokens = [*ids(BEFORE), *ids(asked), *ids(BEHIND)]
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0, -1]
    both = logits[[tokenizer.token_to_id("no"), tokenizer.token_to_id("yes")]]
    return float(both.log_softmax(0)[1].exp())


def test_a_decoder_is_asked_whether_a_text_answers(
    tmp_path: Path, decoder: tuple[PreTrainedModel, Tokenizer]
) -> None:
    with Reranker(tmp_path, backend="cpu") as reranker:
        plain = reranker.rank(QUERY, TEXTS)
        told = reranker.rank(QUERY, TEXTS, instruction="w30 w31")
        many = reranker.rank(QUERY, TEXTS * 30)
    assert plain.scores == pytest.approx(
        [share_of_yes(*decoder, QUERY, text, INSTRUCTION) for text in TEXTS], abs=1e-5
    )
    assert told.scores == pytest.approx(
        [share_of_yes(*decoder, QUERY, text, "w30 w31") for text in TEXTS], abs=1e-5
    )
    assert many.scores == plain.scores * 30
    assert len({*plain.scores, *told.scores}) == 2 * len(TEXTS)
