"""Tokenizers in GGUF files: the ids, texts and templates that the model was trained with."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

from kvrt.errors import ModelError
from kvrt.model.chat.templates import Chat
from kvrt.model.files.resolve import resolve
from kvrt.model.gguf.files import open_gguf
from kvrt.model.gguf.splits import SPLITS
from kvrt.model.gguf.tokens import read_tokenizer
from kvrt.model.tokens.tokenizer import Tokenizer
from tests.model.checkpoints import piece_tokenizer
from tests.model.ggufs import converted_tokenizer, joined_by_score, tokenizer_keys, write_gguf

ROOT = Path(__file__).parents[2]
PREFIX = "tokenizer.ggml."


def opened(path: Path, **changes: Any) -> Tokenizer:
    """The tokenizer of a file that has no weights; `changes`: of its keys, None to leave out."""
    keys = tokenizer_keys() | {PREFIX + name: item for name, item in changes.items()}
    keys = {name: item for name, item in keys.items() if item is not None}
    write_gguf(path / "t.gguf", {"general.architecture": "llama"} | keys)
    tokenizer = read_tokenizer(open_gguf(path / "t.gguf"), 1 << 20)
    assert tokenizer is not None
    return tokenizer


def error_of(path: Path, **changes: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        opened(path, **changes)
    assert "t.gguf" in str(caught.value)
    return caught.value


def test_pairs_of_pieces_are_joined_in_the_order_of_the_list(tmp_path: Path) -> None:
    reference = piece_tokenizer()
    reference.normalizer = normalizers.Replace(" ", "▁")
    vocab, content = reference.get_vocab(), json.loads(reference.to_str())
    words = sorted(vocab, key=vocab.__getitem__)
    given = opened(
        tmp_path,
        model="gemma4",
        pre=None,
        tokens=words,
        token_type=[2, 3, 3, *[6] * 256, *[1] * (len(words) - 259)],
        scores=[0.0] * len(words),
        merges=[" ".join(pair) for pair in content["model"]["merges"]],
        unknown_token_id=0,
    )
    for text in ("hello hello", " a  hello.", "é ✓", "hell o"):
        ids = given.encode(text)
        assert ids == reference.encode(text).ids
        assert given.decode(ids) == text


# --- byte pairs ---------------------------------------------------------------------------------


def test_the_ids_are_those_of_the_tokenizer_that_the_file_was_made_from(tmp_path: Path) -> None:
    file = resolve("tiny") / "tokenizer.json"
    reference = tokenizers.Tokenizer.from_file(str(file))
    given = opened(tmp_path, **{name.removeprefix(PREFIX): item for name, item in
                                converted_tokenizer(file).items()}, bos_token_id=None)  # fmt: skip
    for name in ("README.md", "ARCHITECTURE.md", "kvrt/model/gguf/splits.py"):
        text = (ROOT / name).read_text()
        ids = given.encode(text)
        assert ids == reference.encode(text).ids
        assert given.decode(ids) == text


CUTS: Mapping[str, Sequence[tuple[str, str]]] = {
    "gpt-2": [("it's  2024\n\nIT'S", "it|'s| | 2024|\n|\n|IT|'|S")],
    "smollm": [("\n 51 x12", "\n |5|1| x|1|2"), ("a  b", "a| | b")],
    "llama-bpe": [("IT'S 12345\n\n\tx", "IT|'S| |123|45|\n\n|\tx"), ("a.b(c)\n", "a|.b|(c|)\n")],
    "qwen2": [("IT'S 123\r\n  x", "IT|'S| |1|2|3|\r\n| | x")],
    "tekken": [("HelloWorld 12 API", "Hello|World| |1|2| API"), ("path/to", "path|/to")],
    "gpt-4o": [("HelloWorld's 1234", "Hello|World's| |123|4")],
    "qwen35": [("e\u0301a 12", "e\u0301a| |1|2")],
    "deepseek-coder": [("a\nb 12", "a|\n|b| |1|2")],
    "deepseek-v3": [("a_b 1234, 漢字", "a|_b| |123|4|,| |漢字")],
    "falcon": [("a1234...", "a|123|4|...")],
    "default": [("it's 1234", "it|'|s| |123|4")],
}


@pytest.mark.parametrize("name", CUTS)
def test_text_is_cut_as_the_model_does_it(name: str) -> None:
    for text, want in CUTS[name]:
        pieces = [(text, (0, 0))]
        for pattern in SPLITS[name].patterns:
            split = pre_tokenizers.Split(Regex(pattern), "isolated")
            pieces = [cut for piece, _ in pieces for cut in split.pre_tokenize_str(piece)]
        assert "|".join(piece for piece, _ in pieces) == want


def test_every_way_to_cut_text_keeps_all_of_it(tmp_path: Path) -> None:
    text = (
        ROOT / "README.md"
    ).read_text() + "\r\n\t it's 2024, DON'T\u3000漢字かな한국어 é\u0301 ١٢٣ 🙂 "
    for name in SPLITS:
        tokenizer = opened(tmp_path, pre=name)
        assert tokenizer.decode(tokenizer.encode(text, special=False)) == text, name


def test_a_token_is_taken_whole_where_the_model_does_that(tmp_path: Path) -> None:
    keys = tokenizer_keys()
    tokens = [*keys[PREFIX + "tokens"], "hold"]
    changes = {"tokens": tokens, "token_type": [1] * len(tokens), "add_bos_token": False}
    assert len(opened(tmp_path, pre="llama-bpe", **changes).encode("hold")) == 1
    assert len(opened(tmp_path, pre="qwen2", **changes).encode("hold")) == 4


def test_nothing_else_cuts_a_text_than_what_the_file_names(tmp_path: Path) -> None:
    keys = tokenizer_keys()
    tokens, merges = [*keys[PREFIX + "tokens"], "(h"], [*keys[PREFIX + "merges"], "( h"]
    changes = {"tokens": tokens, "token_type": [1] * len(tokens), "merges": merges}
    assert len(opened(tmp_path, pre="qwen2", **changes).encode("(h")) == 1
    assert len(opened(tmp_path, pre="gpt-2", **changes).encode("(h")) == 2


def test_an_unknown_way_to_cut_text_is_refused_with_the_ways_known(tmp_path: Path) -> None:
    error = error_of(tmp_path, pre="next-year")
    assert "tokenizer.ggml.pre is 'next-year'" in str(error)
    assert "smollm" in str(error)
    assert "safetensors" in error.fix
    assert "tokenizer.ggml.pre is missing" in str(error_of(tmp_path, pre=None))


# --- SentencePiece ------------------------------------------------------------------------------


def pieces(words: Sequence[str], scores: Sequence[float], **changes: Any) -> dict[str, Any]:
    """Keys of a SentencePiece tokenizer: its three special tokens, bytes, and words."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    return {
        "model": "llama",
        "pre": None,
        "merges": None,
        "tokens": tokens,
        "scores": [0.0] * 259 + list(scores),
        "token_type": [2, 3, 3, *[6] * 256, *[1] * len(words)],
        "unknown_token_id": 0,
        **changes,
    }


def test_words_are_joined_by_their_scores(tmp_path: Path) -> None:
    rng = random.Random(0)
    for round in range(20):
        longer = {"".join(rng.choices("▁abc", k=rng.randrange(2, 6))) for _ in range(60)}
        words = ["▁", "a", "b", "c", *sorted(longer)]
        scores = rng.sample(range(-1000, 0), len(words))
        by_word = dict(zip(words, map(float, scores), strict=True))
        tokenizer = opened(tmp_path, **pieces(words, list(by_word.values()), add_bos_token=False))
        for _ in range(50):
            text = "".join(rng.choices("abc ", k=rng.randrange(1, 30)))
            got = [tokenizer.token(id) for id in tokenizer.encode(text)]
            assert got == joined_by_score("▁" + text.replace(" ", "▁"), by_word), (round, text)
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_what_is_no_word_becomes_bytes_and_comes_back(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path, **pieces(["▁", "a"], [-1.0, -2.0]))
    ids = tokenizer.encode("aé")
    assert [tokenizer.token(id) for id in ids] == ["<s>", "▁", "a", "<0xC3>", "<0xA9>"]
    assert [tokenizer.byte(id) for id in ids[3:]] == [0xC3, 0xA9]
    assert tokenizer.decode(ids) == "aé"


@pytest.mark.parametrize("prefix", [True, False])
def test_a_space_goes_before_a_text_where_the_model_does_that(tmp_path: Path, prefix: bool) -> None:
    keys = pieces(["▁", "a"], [-1.0, -2.0], add_space_prefix=prefix, add_bos_token=False)
    tokenizer = opened(tmp_path, **keys)
    assert [tokenizer.token(id) for id in tokenizer.encode("a")] == ["▁"] * prefix + ["a"]
    assert tokenizer.decode(tokenizer.encode("a a")) == "a a"


# --- what frames a text -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        ({}, "x"),
        ({"add_bos_token": True}, "<s>x"),
        ({"add_eos_token": True}, "x</s>"),
        ({"pre": "llama-bpe"}, "<s>x"),
        ({"pre": "llama-bpe", "add_bos_token": False}, "x"),
    ],
)
def test_a_text_begins_and_ends_as_the_keys_say(
    tmp_path: Path, changes: dict[str, Any], want: str
) -> None:
    tokenizer = opened(tmp_path, **changes)
    assert tokenizer.decode(tokenizer.encode("x"), skip_special=False) == want
    assert tokenizer.decode(tokenizer.encode("x", special=False), skip_special=False) == "x"


def test_control_tokens_are_special_and_added_ones_are_text(tmp_path: Path) -> None:
    keys = tokenizer_keys()
    tokens = [*keys[PREFIX + "tokens"], "<|turn|>", "<tool>"]
    types = [*keys[PREFIX + "token_type"], 3, 4]
    tokenizer = opened(tmp_path, tokens=tokens, token_type=types)
    ids = tokenizer.encode("a<|turn|><tool>b")
    assert len(ids) == 4
    assert tokenizer.decode(ids) == "a<tool>b"
    assert (tokenizer.bos, tokenizer.eos) == (1, 2)


def test_an_answer_ends_at_the_end_of_a_turn_though_the_keys_name_another_token(
    tmp_path: Path,
) -> None:
    keys = tokenizer_keys()
    tokens = [*keys[PREFIX + "tokens"], "<|eot_id|>", "<|end|>"]
    types = [*keys[PREFIX + "token_type"], 3, 1]
    tokenizer = opened(tmp_path, tokens=tokens, token_type=types)
    assert tokenizer.ends == {2, tokens.index("<|eot_id|>")}


@pytest.mark.promise("P25")
def test_a_chat_template_runs_in_the_sandbox(tmp_path: Path) -> None:
    keys = {
        "general.architecture": "llama",
        **tokenizer_keys(),
        "tokenizer.chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    }
    tokenizer = read_tokenizer(open_gguf(write_gguf(tmp_path / "t.gguf", keys)), 300)
    assert tokenizer is not None
    with pytest.raises(
        ModelError, match=r"t\.gguf: tokenizer\.chat_template: chat template is not"
    ):
        tokenizer.encode_chat(Chat([{"role": "user", "content": "hi"}]))


def test_chat_templates_are_found_by_name_and_see_the_special_tokens(tmp_path: Path) -> None:
    keys = {
        "general.architecture": "llama",
        **tokenizer_keys(),
        "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}",
        "tokenizer.chat_template.loud": "{{ messages[0].content }}!",
    }
    tokenizer = read_tokenizer(open_gguf(write_gguf(tmp_path / "t.gguf", keys)), 300)
    assert tokenizer is not None
    messages = [{"role": "user", "content": "hi"}]
    ids = tokenizer.encode_chat(Chat(messages))
    assert ids[0] == tokenizer.bos
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode(tokenizer.encode_chat(Chat(messages, template="loud"))) == "hi!"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "t5"}, "tokenizer.ggml.model is 't5'"),
        ({"tokens": []}, "tokenizer.ggml.tokens has 0"),
        ({"tokens": ["a", "b", "a"], "token_type": [1, 1, 1]}, "'a' twice"),
        ({"tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"token_type": [1]}, "tokenizer.ggml.token_type has 1"),
        ({"merges": ["ab"]}, "tokenizer.ggml.merges has 'ab'"),
        ({"merges": ["no such"]}, "no"),
        ({"bos_token_id": 1 << 30}, "tokenizer.ggml.bos_token_id is"),
        ({"add_bos_token": 7}, "tokenizer.ggml.add_bos_token is 7"),
        ({"tokens": ["a" * 1025], "token_type": [1]}, "tokenizer.ggml.tokens has one of 1025"),
        ({"tokens": ["a" * 65, "b" * 65], "token_type": [1, 1]}, "and 130 in all"),
        (pieces(["a"], [0.0]) | {"scores": [0.0]}, "tokenizer.ggml.scores has 1"),
        (pieces(["a"], [0.0]) | {"scores": [0.0] * 300}, "tokenizer.ggml.scores has 300"),
        (pieces(["a"], [0.0]) | {"token_type": [1] * 300}, "tokenizer.ggml.token_type has 300"),
    ],
)
def test_a_tokenizer_that_does_not_fit_together_is_refused_by_key(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    assert words in str(error_of(tmp_path, **changes))
