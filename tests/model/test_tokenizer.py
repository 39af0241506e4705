"""Text to tokens and back, and text that grows token by token."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from kvrt.errors import ModelError, RequestError
from kvrt.model.tokens.tokenizer import Tokenizer, read_tokenizer
from tests.model.checkpoints import VOCAB, byte_tokenizer, save_tokenizer

KINDS = ("bytes", "pieces")


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    return read_tokenizer(save_tokenizer(tmp_path_factory.mktemp("t"), request.param), VOCAB)


def tokenizer_with(folder: Path, kind: str = "bytes", **config: Any) -> Tokenizer:
    return read_tokenizer(save_tokenizer(folder, kind, **config), VOCAB)


# --- encoding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a hello", "", " é hell  a.", "日本 🙂", "</s> a"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", [{}, {"add_bos_token": True}, {"add_bos_token": False}])
def test_text_is_encoded_as_transformers_does(
    tmp_path: Path, kind: str, config: dict[str, Any], text: str
) -> None:
    tokenizer = tokenizer_with(tmp_path, kind, tokenizer_class="TokenizersBackend", **config)
    want = AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"]
    assert tokenizer.encode(text) == want


def test_the_first_token_of_a_vocabulary_may_begin_and_end_texts(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, bos_token="<unk>", eos_token="<unk>")
    assert (tokenizer.bos, tokenizer.eos) == (0, 0)
    assert tokenizer.ends == {0}


def test_settings_of_a_training_run_do_not_cut_prompts(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert len(read_tokenizer(tmp_path, VOCAB).encode("a longer text")) == len("a longer text")


def test_special_tokens_may_be_written_as_objects(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, eos_token={"content": "</s>", "special": True})
    assert (tokenizer.bos, tokenizer.eos) == (1, 2)


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="Unicode"):
        tokenizer.encode("a\ud800")


# --- files that do not fit --------------------------------------------------------------------


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    with pytest.raises(ModelError, match=r"tokenizer\.json.*vocab_size is 100"):
        read_tokenizer(tmp_path, 100)


def test_added_tokens_that_the_model_has_no_row_for_are_no_reason_to_refuse_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    pad = {"id": VOCAB, "content": "[PAD]", "special": True, "single_word": False,
           "lstrip": False, "rstrip": False, "normalized": False}  # fmt: skip
    content["added_tokens"].append(pad)
    path.write_text(json.dumps(content))
    rows = max(read_tokenizer(tmp_path, VOCAB + 1)._tokenizer.get_vocab().values())
    tokenizer = read_tokenizer(tmp_path, rows)
    assert "no row for '[PAD]'" in caplog.text
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}',
        b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}',
        b'{"model": {"type": "None", "vocab": {}}}',
    ],
)
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        read_tokenizer(tmp_path, VOCAB)


def test_a_damaged_tokenizer_config_is_refused(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer_config\.json"):
        read_tokenizer(tmp_path, VOCAB)


def test_a_post_processor_decides_where_the_configuration_is_silent(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    assert read_tokenizer(tmp_path, VOCAB).encode("a")[0] == 1


# --- a tokenizer whose own code fails -----------------------------------------------------------

REGEX = {"type": "Replace", "pattern": {"Regex": "(h+)+$"}, "content": ""}
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "no", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [],
    "special_tokens": {},
}
CUT = {"type": "Strip", "content": "e", "start": 0, "stop": 2**62}


def with_part(folder: Path, **part: Any) -> Path:
    """The folder of a tokenizer in which one part is of the hostile kind."""
    path = save_tokenizer(folder, "pieces") / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | part))
    return folder


@pytest.mark.parametrize(
    "part",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"decoder": {"type": "Replace", "pattern": {"Regex": "(a"}, "content": "x"}},
        {"added_tokens": [{"id": 1}]},
    ],
)
def test_a_tokenizer_that_fails_at_load_is_named(tmp_path: Path, part: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json: the tokenizer does not work"):
        read_tokenizer(with_part(tmp_path, **part), VOCAB)


@pytest.mark.parametrize(
    "part",
    [
        {"normalizer": REGEX},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"post_processor": TEMPLATE},
    ],
)
def test_a_text_that_the_tokenizer_fails_on_fails_its_request(
    tmp_path: Path, part: dict[str, Any]
) -> None:
    tokenizer = read_tokenizer(with_part(tmp_path, **part), VOCAB)
    with pytest.raises(RequestError, match="fails on this text") as caught:
        tokenizer.encode("h" * 40 + "!")
    assert caught.value.param == "prompt"


def calls(depth: int) -> str:
    """A pattern that takes twice as long to compile with each level."""
    groups = [f"(?<n{n}>\\g<n{n + 1}>\\g'n{n + 1}')" for n in range(depth)]
    return "".join(groups) + f"(?<n{depth}>a)"


@pytest.mark.parametrize("kind", ["pre_tokenizer", "normalizer", "decoder"])
@pytest.mark.parametrize(
    "spelled",
    [{}, {"\\\\g<": "\\u005c\\u0067\\u003C", "Regex": "R\\u0065gex"}],
    ids=["plain", "escaped"],
)
def test_a_pattern_that_would_take_for_ever_to_compile_is_refused(
    tmp_path: Path, kind: str, spelled: dict[str, str]
) -> None:
    split = {"type": "Split", "pattern": {"Regex": calls(60)}, "behavior": "Isolated"}
    replace = {"type": "Replace", "pattern": {"Regex": calls(60)}, "content": ""}
    within = {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split | {"invert": False}]},
        "normalizer": replace,
        "decoder": {"type": "Sequence", "decoders": [replace]},
    }
    path = with_part(tmp_path, **{kind: within[kind]}) / "tokenizer.json"
    text = path.read_text()
    for plain, escaped in spelled.items():
        assert plain in text
        text = text.replace(plain, escaped)
    path.write_text(text)
    with pytest.raises(ModelError, match="calls a group"):
        read_tokenizer(tmp_path, VOCAB)


def test_what_only_looks_like_a_call_of_a_group_is_no_reason_to_refuse_a_tokenizer(
    tmp_path: Path,
) -> None:
    pattern = {"type": "Replace", "pattern": {"Regex": r"\\g<a>|\gx"}, "content": "b"}
    folder = with_part(tmp_path, normalizer=pattern)
    words = json.loads((folder / "tokenizer.json").read_text())
    words["added_tokens"].append(words["added_tokens"][-1] | {"id": VOCAB - 1, "content": r"\g<a>"})
    (folder / "tokenizer.json").write_text(json.dumps(words))
    assert read_tokenizer(folder, VOCAB).encode(r"\g<a>")


def test_tokens_that_the_tokenizer_fails_on_raise_an_ordinary_error(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(with_part(tmp_path, decoder=CUT), VOCAB)
    token = tokenizer.encode("e")[-1]
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        tokenizer.detokenizer().push(token)
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        tokenizer.detokenizer([token])
