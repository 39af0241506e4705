"""Text that grows token by token, beside what the `tokenizers` library gives for all tokens."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from kvrt.model.files.resolve import resolve
from kvrt.model.tokens.detokenizer import KEEP, Detokenizer
from kvrt.model.tokens.tokenizer import Tokenizer, read_tokenizer
from tests.model.checkpoints import byte_tokenizer, piece_tokenizer

BAD = "\ufffd"
ROWS = 8192
FACE = "🙂"


def metaspace_tokenizer() -> tokenizers.Tokenizer:
    """Unigram, as T5 and ALBERT have it."""
    words = ["<unk>", "<s>", "</s>", "▁", "▁a", "▁he", "llo", "é", "日", "."]
    tokenizer = tokenizers.Tokenizer(models.Unigram([(word, -1.0) for word in words], 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def wordpiece_tokenizer() -> tokenizers.Tokenizer:
    """As BERT has it."""
    words = ["<unk>", "<s>", "</s>", "a", "he", "##llo", "##é", ".", "'", "##s", "n't", "do"]
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def bundled_tokenizer() -> tokenizers.Tokenizer:
    """That of the bundled model: byte-level, with words."""
    return tokenizers.Tokenizer.from_file(str(resolve("tiny") / "tokenizer.json"))


KINDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "bytes": byte_tokenizer,
    "pieces": piece_tokenizer,
    "metaspace": metaspace_tokenizer,
    "wordpiece": wordpiece_tokenizer,
    "bundled": bundled_tokenizer,
}


@dataclass(frozen=True)
class Kind:
    """A tokenizer of ours, and the library's with a token of its own for a byte that is bad."""

    ours: Tokenizer
    library: tokenizers.Tokenizer
    bad: int

    def text(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of all tokens together, where bad bytes spoil no characters beside them."""
        special = {i for i, t in self.library.get_added_tokens_decoder().items() if t.special}
        if skip_special:
            ids = [i for i in ids if i not in special]
        ids = [i for i in ids if self.library.id_to_token(i) is not None]
        return self.library.decode(self._stand_in(ids), skip_special_tokens=False)

    def _stand_in(self, ids: Sequence[int]) -> list[int]:
        spelled: list[int] = []
        run: list[int] = []
        for i in [*ids, -1]:
            if i >= 0 and (byte := self.ours.byte(i)) is not None:
                run.append(byte)
                continue
            for letter in bytes(run).decode(errors="surrogateescape"):
                good = not "\udc80" <= letter <= "\udcff"
                values = letter.encode() if good else b""
                spelled += [self.byte(v) for v in values] if good else [self.bad]
            run = []
            spelled += [i] if i >= 0 else []
        return spelled

    def byte(self, value: int) -> int:
        token = self.library.token_to_id(f"<0x{value:02X}>")
        assert token is not None
        return token


def make_kind(folder: Path, name: str) -> Kind:
    tokenizer = KINDS[name]()
    # Tokens that were added are written as they are, also where they hold a space.
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("two words")])
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(BAD, normalized=False)])
    bad = tokenizer.token_to_id(BAD)
    assert bad is not None
    return Kind(read_tokenizer(folder, ROWS), tokenizer, bad)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kind:
    return make_kind(tmp_path_factory.mktemp("t"), request.param)


def joined(
    tokenizer: Tokenizer, ids: Sequence[int], prompt: Sequence[int] = (), skip_special: bool = True
) -> str:
    detokenizer = tokenizer.detokenizer(prompt, skip_special=skip_special)
    return "".join([*map(detokenizer.push, ids), detokenizer.flush()])


def added(whole: str, prompt: str) -> str:
    """What `whole` has beyond what it has in common with the text of its prompt."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(whole, prompt, strict=False))
    return whole[sum(1 for _ in same) :]


TOKENS = st.lists(st.integers(0, 290) | st.integers(0, 4200), max_size=60)


@settings(max_examples=120, deadline=None)
@given(ids=TOKENS, skip_special=st.booleans())
@example(ids=[3, 131], skip_special=True)  # a byte that is text, and one that is bad
def test_pieces_of_any_tokens_join_to_the_text_of_all(
    kind: Kind, ids: list[int], skip_special: bool
) -> None:
    ids = [i for i in ids if i != kind.bad]
    assert joined(kind.ours, ids, skip_special=skip_special) == kind.text(
        ids, skip_special=skip_special
    )


@settings(max_examples=120, deadline=None)
@given(prompt=TOKENS, ids=TOKENS, skip_special=st.booleans())
def test_pieces_of_an_answer_to_any_tokens_join_to_what_it_adds(
    kind: Kind, prompt: list[int], ids: list[int], skip_special: bool
) -> None:
    prompt, ids = [i for i in prompt if i != kind.bad], [i for i in ids if i != kind.bad]
    texts = [kind.text(some, skip_special=skip_special) for some in ([*prompt, *ids], prompt)]
    assert joined(kind.ours, ids, prompt, skip_special) == added(*texts)


@settings(max_examples=120, deadline=None)
@given(text=st.text(max_size=40), answer=st.text(max_size=40))
def test_pieces_of_a_text_join_to_what_the_library_makes_of_it(
    kind: Kind, text: str, answer: str
) -> None:
    prompt, ids = kind.ours.encode(text), kind.ours.encode(answer)
    want = kind.ours.decode([*prompt, *ids])[len(kind.ours.decode(prompt)) :]
    assert joined(kind.ours, ids, prompt) == want


@settings(max_examples=80, deadline=None)
@given(text=st.text(min_size=1, max_size=30), cut=st.integers(0, 60))
def test_a_prompt_may_end_anywhere_within_a_text(kind: Kind, text: str, cut: int) -> None:
    ids = kind.ours.encode(text)
    piece = joined(kind.ours, ids[cut:], ids[:cut])
    whole = kind.ours.decode(ids)
    assert whole.endswith(piece)
    if BAD not in whole:
        assert piece == added(whole, kind.text(ids[:cut]).rstrip(BAD))


@settings(max_examples=80, deadline=None)
@given(text=st.text(min_size=1, max_size=30))
def test_no_piece_holds_a_part_of_a_character(kind: Kind, text: str) -> None:
    detokenizer = kind.ours.detokenizer()
    pieces = [detokenizer.push(token) for token in kind.ours.encode(text)]
    if BAD not in text:
        assert not any(BAD in piece for piece in pieces)


@pytest.mark.parametrize("name", ["bytes", "pieces"])
def test_a_character_is_given_out_with_its_last_byte(tmp_path: Path, name: str) -> None:
    tokenizer = make_kind(tmp_path, name).ours
    detokenizer = tokenizer.detokenizer()
    ids = [
        i for text in ("a", FACE, FACE, "a") for i in tokenizer.encode(text) if i not in (1, 263)
    ]
    given_out = [piece for piece in map(detokenizer.push, ids) if piece]
    assert "".join(given_out).replace(" ", "") == f"a{FACE}{FACE}a"
    assert given_out.count(FACE) == 2


def test_bytes_that_never_become_a_character_do_not_hold_up_what_follows(tmp_path: Path) -> None:
    tokenizer = make_kind(tmp_path, "bytes").ours
    half, a = tokenizer.encode(FACE)[:2], tokenizer.encode("a")
    detokenizer = tokenizer.detokenizer()
    assert [detokenizer.push(token) for token in [*half, *a]] == ["", "", f"{BAD}a"]
    assert [detokenizer.push(token) for token in half] == ["", ""]
    assert detokenizer.flush() == BAD


def test_a_bad_byte_spoils_no_character_beside_it(tmp_path: Path) -> None:
    kind = make_kind(tmp_path, "pieces")
    face = [kind.byte(value) for value in FACE.encode()]
    assert joined(kind.ours, [*face, face[1], *face]) == f"{FACE}{BAD}{FACE}"


def test_the_space_before_an_answers_first_word_is_kept(tmp_path: Path) -> None:
    tokenizer = make_kind(tmp_path, "pieces").ours
    hello = tokenizer.encode("hello")[1:]
    assert joined(tokenizer, hello) == "hello"
    assert joined(tokenizer, hello, tokenizer.encode("a")) == " hello"


def test_special_tokens_have_text_only_if_asked_for(tmp_path: Path) -> None:
    tokenizer = make_kind(tmp_path, "pieces").ours
    a, hello = tokenizer.encode("a hello")[1:]
    ids = [1, a, 2, 0, ROWS, hello, 2]
    assert joined(tokenizer, ids) == "a hello"
    assert joined(tokenizer, ids, skip_special=False) == "<s> a</s><unk> hello</s>"


def test_a_token_that_only_looks_like_a_byte_is_its_own_text(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<0x41>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours = read_tokenizer(tmp_path, ROWS)
    assert joined(ours, ours.encode("a<0x41>")) == "a<0x41>"


class Counting:
    """A tokenizer that notes how many tokens it is asked to decode at once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.longest = 0
        self.calls = 0
        self.byte = tokenizer.byte
        self.is_silent = tokenizer.is_silent
        self.word = tokenizer.word

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        self.longest = max(self.longest, len(ids))
        self.calls += 1
        return self._tokenizer.decode(ids, skip_special=skip_special)


@settings(max_examples=25, deadline=None)
@given(ids=st.lists(st.integers(0, 290), min_size=1, max_size=6))
def test_a_token_costs_the_same_however_long_the_text_is(kind: Kind, ids: list[int]) -> None:
    tokenizer = Counting(kind.ours)
    detokenizer = Detokenizer(tokenizer, ids * 50)
    assert tokenizer.calls <= 4 * (4 * KEEP + 1)
    for token in ids * 50:
        calls = tokenizer.calls
        detokenizer.push(token)
        assert tokenizer.calls - calls <= 4
    assert tokenizer.longest <= 2 * KEEP + 4
