"""Tokens of side files, beside what transformers makes of the same folder."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from kvrt.errors import ModelError
from kvrt.model.tokens.tokenizer import read_tokenizer
from tests.model.checkpoints import VOCAB, byte_tokenizer, save_tokenizer

NEXT = byte_tokenizer().get_vocab_size()
TEXTS = [
    "<|tool|>",
    "a <|tool|>b",
    "<a> <|tool|> <b>",
    " <b>x",
    "é[PAD]<m>",
    '<s></s>!"#<unk>',
    "<A><|TOOL|>[pad]<M>",
]


def entry(content: str, **flags: bool) -> dict[str, Any]:
    usual = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word", "special"), False)
    return {"content": content, **usual, **flags}


ADDED = {"<|tool|>": NEXT, "<a>": NEXT + 1, "<b>": NEXT + 2}
FOLDERS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "added_tokens.json": {"added_tokens.json": ADDED},
    "added_tokens.json, some of them special": {
        "added_tokens.json": ADDED,
        "tokenizer_config.json": {"extra_special_tokens": ["<a>"], "pad_token": "<b>"},
    },
    "added_tokens.json, special by the map": {
        "added_tokens.json": ADDED,
        "special_tokens_map.json": {
            "additional_special_tokens": ["<a>"],
            "pad_token": entry("<|tool|>", lstrip=True),
        },
    },
    "added_tokens_decoder": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                str(NEXT + 1): entry("<a>", lstrip=True),
                str(NEXT): entry("<|tool|>", special=True),
            }
        }
    },
    "added_tokens_decoder, and files that count no more": {
        "tokenizer_config.json": {"added_tokens_decoder": {str(NEXT): entry("<a>")}},
        "added_tokens.json": {"<|tool|>": NEXT},
        "special_tokens_map.json": {"mask_token": "<m>"},
    },
    "flags of tokens that tokenizer.json has": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "1": entry("<s>", special=False),
                "2": entry("</s>", rstrip=True, special=True),
                "4": entry('"', special=True),
            }
        }
    },
    "extra_special_tokens": {
        "tokenizer_config.json": {"extra_special_tokens": ["<b>", "<|tool|>"]}
    },
    "extra_special_tokens by name": {
        "tokenizer_config.json": {"extra_special_tokens": {"tool_token": "<|tool|>", "b": "<b>"}}
    },
    "additional_special_tokens": {
        "tokenizer_config.json": {"additional_special_tokens": ["<|tool|>", "<a>"]}
    },
    "both, of which the new name counts": {
        "tokenizer_config.json": {
            "additional_special_tokens": ["<|tool|>"],
            "extra_special_tokens": ["<a>"],
        }
    },
    "special_tokens_map.json": {
        "special_tokens_map.json": {"mask_token": "<m>", "pad_token": entry("[PAD]", rstrip=True)}
    },
    "the map alone, under the old name": {
        "special_tokens_map.json": {"additional_special_tokens": ["<|tool|>", "<a>"]}
    },
    "added_tokens.json with a token that is there": {
        "tokenizer_config.json": {"eos_token": None},
        "added_tokens.json": {"</s>": 2, "<a>": NEXT},
    },
    "the map comes before the configuration": {
        "tokenizer_config.json": {"mask_token": "<a>", "pad_token": "<b>"},
        "special_tokens_map.json": {"mask_token": "<m>"},
    },
    "ids that tokenizer.json contradicts": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {"7": entry("</s>", special=True), "8": entry("!")}
        }
    },
    "names of nothing": {
        "tokenizer_config.json": {"pad_token": "", "mask_token": "<m>", "sep_token": None}
    },
    "names of its own": {
        "tokenizer_config.json": {"image_token": "<|tool|>", "audio_token": "<a>"}
    },
    "names of tokens that are in the vocabulary": {
        "tokenizer_config.json": {"sep_token": "!", "cls_token": "<s>", "mask_token": "#"}
    },
}


def write(folder: Path, files: dict[str, Any]) -> Path:
    settings = {"tokenizer_class": "TokenizersBackend", **files.get("tokenizer_config.json", {})}
    save_tokenizer(folder, **settings)
    for name in files.keys() - {"tokenizer_config.json"}:
        (folder / name).write_text(json.dumps(files[name]))
    return folder


@pytest.mark.parametrize("normalizer", [None, {"type": "Lowercase"}], ids=["as written", "lower"])
@pytest.mark.parametrize("name", FOLDERS)
def test_tokens_of_side_files_are_those_of_transformers(
    tmp_path: Path, name: str, normalizer: object
) -> None:
    """Before or after a text is normalized: which of the two is a flag of each token."""
    whole = write(tmp_path, FOLDERS[name]) / "tokenizer.json"
    whole.write_text(json.dumps({**json.loads(whole.read_text()), "normalizer": normalizer}))
    ours = read_tokenizer(tmp_path, VOCAB)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = reference(text)["input_ids"]
        assert ours.encode(text) == ids
        for skip in (True, False):
            assert ours.decode(ids, skip_special=skip) == reference.decode(
                ids, skip_special_tokens=skip
            )
    special = {i for i, token in reference.added_tokens_decoder.items() if token.special}
    assert {i for i in range(VOCAB) if ours.is_silent(i) and ours.token(i) is not None} == special
    assert ours.named == reference.special_tokens_map


@pytest.mark.parametrize(
    ("files", "file"),
    [
        ({"tokenizer_config.json": {"added_tokens_decoder": []}}, "tokenizer_config.json"),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"x": entry("<a>")}}}, "_config.json"),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"9": "<a>"}}}, "_config.json"),
        ({"added_tokens.json": {"<a>": -1}}, "added_tokens.json"),
        ({"added_tokens.json": {"<a>": True}}, "added_tokens.json"),
        ({"added_tokens.json": []}, "added_tokens.json"),
        ({"special_tokens_map.json": []}, "special_tokens_map.json"),
    ],
)
def test_a_damaged_side_file_is_refused(tmp_path: Path, files: dict[str, Any], file: str) -> None:
    with pytest.raises(ModelError, match=file.replace(".", r"\.")):
        read_tokenizer(write(tmp_path, files), VOCAB)


def test_a_token_that_cannot_have_its_id_is_refused(tmp_path: Path) -> None:
    for number in (5, NEXT + 1):
        write(tmp_path, {"added_tokens.json": {"<a>": number}})
        with pytest.raises(ModelError, match=rf"added_tokens\.json: token '<a>' .* id {number}"):
            read_tokenizer(tmp_path, VOCAB)


def test_a_token_beyond_the_model_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, {"tokenizer_config.json": {"pad_token": "[PAD]", "mask_token": "[M]"}})
    with caplog.at_level(logging.WARNING, "kvrt"):
        tokenizer = read_tokenizer(tmp_path, NEXT)
    assert max(tokenizer.encode("[PAD]")) < NEXT
    (record,) = caplog.records
    assert "the model has no row for '[PAD]', '[M]'" in record.getMessage()
