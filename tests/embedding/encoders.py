"""Tiny encoders with random weights, made by transformers, as folders that people have."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedModel

from tests.model.checkpoints import randomised, save_model

WORDS = [f"w{number}" for number in range(60)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
SHAPE: dict[str, Any] = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 70,
    "pad_token_id": 0,
}
KINDS = ("bert", "roberta", "xlm-roberta")


def make_encoder(kind: str, folder: Path, **changes: Any) -> PreTrainedModel:
    """transformers' own model, and its folder with a tokenizer of whole words."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SHAPE, **changes})
    model = randomised(AutoModel.from_config(config, attn_implementation="eager").eval())
    save_model(model, folder)
    save_words(folder)
    return model


def save_words(folder: Path) -> None:
    """A tokenizer that puts [CLS] before each text and [SEP] behind it, and cuts nothing off."""
    vocab = {token: number for number, token in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))


def save_recipe(
    folder: Path,
    pooling: dict[str, Any],
    *,
    steps: tuple[str, ...] = ("Transformer", "Pooling", "Normalize"),
    longest: int | None = None,
    prompts: dict[str, str] | None = None,
    prompt: str | None = None,
) -> None:
    """The files of sentence-transformers."""

    def write(name: str, content: object) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))

    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    listed = [
        {"idx": n, "name": str(n), "path": paths.get(step, f"{n}_{step}"), "type": f"x.y.{step}"}
        for n, step in enumerate(steps)
    ]
    write("modules.json", listed)
    write("1_Pooling/config.json", pooling)
    write("sentence_bert_config.json", {"max_seq_length": longest})
    write(
        "config_sentence_transformers.json",
        {"prompts": prompts or {}, "default_prompt_name": prompt},
    )
