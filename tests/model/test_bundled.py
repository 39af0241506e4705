"""The bundled model is whole, is what its card says, and has learnt something."""

import json
import math
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

import kvrt.model.bundled as bundled
from kvrt.model.bundled import train
from kvrt.model.bundled.corpus import END, Document, held_out_slice
from kvrt.model.bundled.net import CausalLM, Shape

FOLDER = Path(bundled.__file__).with_name("tiny")
MIB = 1 << 20


def read_json(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def heldout_ids(tokenizer: Tokenizer) -> torch.Tensor:
    text = (FOLDER / "heldout.txt").read_text(encoding="utf-8")
    return torch.tensor(tokenizer.encode(text).ids)


@pytest.fixture(scope="module")
def reference() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def test_the_folder_is_complete_and_small() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "heldout.txt",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    }
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 12 * MIB
    assert (FOLDER / "model.safetensors").stat().st_size <= 8 * MIB
    assert (FOLDER / "heldout.txt").stat().st_size <= 200_000


def test_the_config_is_a_llama_with_grouped_heads_and_tied_embeddings() -> None:
    config = AutoConfig.from_pretrained(FOLDER)
    assert config.model_type == "llama"
    assert config.architectures == ["LlamaForCausalLM"]
    assert config.tie_word_embeddings
    assert config.num_attention_heads > config.num_key_value_heads > 1
    assert read_json("config.json")["torch_dtype"] == "bfloat16"


def test_the_weights_are_finite_bfloat16_and_exactly_those_of_the_config() -> None:
    expected = LlamaForCausalLM(AutoConfig.from_pretrained(FOLDER)).state_dict()
    del expected["lm_head.weight"]  # tied to the embedding, so not in the file
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in expected.items()}
    for name, tensor in found.items():
        assert tensor.dtype == torch.bfloat16, name
        assert tensor.isfinite().all(), name
    assert sum(t.numel() for t in found.values()) == read_json("training.json")["parameters"]


def test_special_tokens_agree_between_all_files(tokenizer: Tokenizer) -> None:
    config = read_json("config.json")
    end = tokenizer.token_to_id(END)
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    for source in (config, read_json("generation_config.json")):
        assert source["bos_token_id"] == source["eos_token_id"] == end
    wrapped = AutoTokenizer.from_pretrained(FOLDER)
    assert wrapped.eos_token == END
    assert wrapped.eos_token_id == end
    assert wrapped.model_max_length == config["max_position_embeddings"]
    assert wrapped("def f(): pass").input_ids == tokenizer.encode("def f(): pass").ids


@given(st.text())
def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def token_losses(model: LlamaForCausalLM, windows: torch.Tensor) -> torch.Tensor:
    """Nats of tokens 1.. of each window: [count, length + 1] ids to [count, length]."""
    with torch.inference_mode():
        rows = [
            F.cross_entropy(model(w[None, :-1], use_cache=False).logits[0], w[1:], reduction="none")
            for w in windows
        ]
    return torch.stack(rows)


def test_the_recorded_loss_is_reproduced_and_far_below_the_best_unigram_model(
    reference: LlamaForCausalLM, heldout_ids: torch.Tensor
) -> None:
    recorded = read_json("training.json")["heldout.txt"]
    assert len(heldout_ids) == recorded["tokens"]

    # A unigram model fitted to this very text: no model that ignores context can do better on it.
    counts = Counter(heldout_ids.tolist())
    unigram = sum(-n * math.log(n / len(heldout_ids)) for n in counts.values()) / len(heldout_ids)

    step = recorded["window"]
    windows = (heldout_ids[i : i + step + 1] for i in range(0, len(heldout_ids) - 1, step))
    total = sum(token_losses(reference, window[None]).sum().item() for window in windows)
    loss = total / (len(heldout_ids) - 1)

    assert loss == pytest.approx(recorded["nats_per_token"], rel=0.01)
    bits = total / math.log(2) / (FOLDER / "heldout.txt").stat().st_size
    assert bits == pytest.approx(recorded["bits_per_byte"], rel=0.01)
    assert loss < 0.7 * unigram


def test_context_helps_up_to_the_last_position_claimed(
    reference: LlamaForCausalLM, heldout_ids: torch.Tensor
) -> None:
    """The same tokens are predicted better at the end of a full context than on their own."""
    length = reference.config.max_position_embeddings
    windows = heldout_ids.unfold(0, length + 1, length)[:12]
    tail = length // 4
    with_context = token_losses(reference, windows)[:, -tail:]
    without = token_losses(reference, windows[:, -tail - 1 :])
    assert with_context.mean() < without.mean()
    # Also where the short window has context enough: positions never trained would lose here.
    assert with_context[:, tail // 2 :].mean() < without[:, tail // 2 :].mean()


def test_the_card_quotes_the_recorded_loss_and_what_the_model_says(
    reference: LlamaForCausalLM, tokenizer: Tokenizer
) -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for text in ("held_out", "heldout.txt"):
        assert str(read_json("training.json")[text]["nats_per_token"]) in card
    prompt = "def read_file(path):"
    ids = tokenizer.encode(prompt).ids
    with torch.inference_mode():
        answer = reference.generate(
            torch.tensor([ids]), max_new_tokens=24, do_sample=False, pad_token_id=0
        )[0].tolist()
    assert tokenizer.decode(answer).rstrip() in card


def test_documents_are_held_out_by_name_whatever_they_say() -> None:
    names = [f"package/module_{i}.py" for i in range(1000)]
    before = [Document(name, "x = 1\n").held_out for name in names]
    after = [Document(name, "y = 2\n").held_out for name in reversed(names)]
    assert before == after[::-1]
    assert 20 < sum(before) < 80  # one in 20 of 1000

    corpus = [Document(name, f"{name}\n") for name in names]
    chosen = held_out_slice(corpus, limit=10**6, per_document=100).split(END)
    expected = {d.text for d in corpus if d.held_out}
    assert set(chosen) == expected
    assert len(chosen) == len(expected)


def test_interrupted_training_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = Shape(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1)
    stages = (train.Stage(steps=4, batch=2, length=8), train.Stage(steps=3, batch=1, length=16))
    texts = list(torch.arange(320).remainder(32).view(5, 64))

    def weights(checkpoint: Path, steps: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        net = CausalLM(shape)
        data = train.batches(texts, stages)
        with monkeypatch.context() as patch:
            patch.setattr(train, "batches", lambda *_: islice(data, steps))
            train.train(net, texts, checkpoint, stages)
        return net.state_dict()

    monkeypatch.setattr(train, "CHECKPOINT_STEPS", 3)
    whole = weights(tmp_path / "whole.pt", 7)
    weights(tmp_path / "parts.pt", 5)  # ends two steps after its last checkpoint
    resumed = weights(tmp_path / "parts.pt", 7)
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
