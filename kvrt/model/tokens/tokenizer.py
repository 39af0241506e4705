"""Text to token ids and back, by the files that come with a model.

tokenizer.json    the tokenizer itself, run by the `tokenizers` library

What others say about it is read in `added`; chat templates in `kvrt.model.chat`.
"""

import functools
import itertools
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers

from kvrt.errors import ModelError, RequestError
from kvrt.model.chat.templates import Chat, ChatTemplates, read_templates
from kvrt.model.files.jsonfile import few, open_regular, shown
from kvrt.model.tokens.added import add_tokens, read_side_files
from kvrt.model.tokens.detokenizer import Detokenizer
from kvrt.model.tokens.patterns import check_patterns
from kvrt.model.tokens.vocabulary import read_vocabulary

TOKENIZER = "tokenizer.json"

log = logging.getLogger(__name__)

END = "<kvrt: the end of a text>"
"""Reads like no token there is."""

TOKENIZER_LIMIT = 128 << 20
TOKENS_FIX = "give the prompt as token ids"
BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Tokenizer:
    """A model's tokenizer and chat templates.

    Args:
        path: the file it was read from, for errors.
        tokenizer: the library's.
        named: special tokens by names such as ``bos_token``.
        chat: the model's chat templates, if it has any.
        ends: tokens that end an answer, beside the one that is named.

    Raises:
        ModelError: the library fails on it.
    """

    def __init__(
        self,
        path: Path,
        tokenizer: tokenizers.Tokenizer,
        named: Mapping[str, str],
        chat: ChatTemplates | None,
        *,
        ends: frozenset[int] = frozenset(),
    ) -> None:
        self._path = path
        self._tokenizer = tokenizer
        self.named = named
        self.chat = chat
        self.bos = self._named_id("bos_token")
        self.eos = self._named_id("eos_token")
        self.ends = ends if self.eos is None else ends | {self.eos}
        ids = read_vocabulary(tokenizer)
        added = tokenizer.get_added_tokens_decoder()
        self.longest = max(map(len, [*ids, *(token.content for token in added.values())]))
        self._special = frozenset(i for i, token in added.items() if token.special)
        self._bytes = {
            i: int(token[3:5], 16)
            for token, i in ids.items()
            if BYTE_TOKEN.fullmatch(token) and self.decode([i], skip_special=False) != token
        }

    @functools.cached_property
    def special_texts(self) -> frozenset[str]:
        """How special tokens read where they are not left out."""
        added = self._tokenizer.get_added_tokens_decoder()
        return frozenset(added[token].content for token in self._special)

    def with_end(self) -> tuple[str, int]:
        """As the text of a tokenizer.json, with one more token; and its id, behind all others."""
        copy = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
        copy.add_special_tokens([tokenizers.AddedToken(END, special=True)])
        end = copy.token_to_id(END)
        assert end is not None, "it was just added"
        return copy.to_str(), end

    @property
    def has_chat(self) -> bool:
        """Whether the model came with a chat template."""
        return self.chat is not None

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The token ids of a prompt; not `special`: of what stands within a text.

        Whether a token for the beginning is put in front is said by tokenizer.json alone, as in
        transformers: ``add_bos_token`` is for tokenizers made without that file.

        Raises:
            RequestError: the text holds half of a surrogate pair, so it is not Unicode; or the
                tokenizer fails on it.
        """
        return self._encode(text, special=special)

    def encode_pair(
        self, first: str, second: str, longest: int | None = None
    ) -> tuple[list[int], list[int]]:
        """The token ids of two texts, as tokenizer.json puts them together, and their types.

        Args:
            longest: so many tokens at most: what is beyond is left out of the end of the second.

        Raises:
            RequestError: as `encode`.
        """
        made = self._encoding(first, second, special=True)
        ids, kinds = made.ids, made.type_ids
        if longest is not None and len(ids) > longest:
            second_ones = [at for at, of in enumerate(made.sequence_ids) if of == 1]
            left_out = {*second_ones[max(0, len(second_ones) - (len(ids) - longest)) :]}
            kept = [at for at in range(len(ids)) if at not in left_out]
            ids, kinds = [ids[at] for at in kept], [kinds[at] for at in kept]
        return ids, kinds

    def encode_chat(self, chat: Chat) -> list[int]:
        """The token ids of a conversation, ready for the assistant's answer.

        Raises:
            RequestError: see `render`.
        """
        # The template has written the special tokens itself.
        return self._encode(self.render(chat), special=False)

    def render(self, chat: Chat) -> str:
        """What the model's chat template writes of a conversation.

        Raises:
            RequestError: the model has no chat template, or it refuses the messages.
        """
        if self.chat is None:
            raise RequestError(
                "the model has no chat template, so it cannot take messages",
                param="messages",
                fix="give the prompt as text",
            )
        return self.chat.render(chat)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of token ids. Bytes that are not UTF-8 become U+FFFD.

        Raises:
            ModelError: the tokenizer fails on them.
        """
        try:
            return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)
        except BaseException as error:
            raise blamed(error, self._path) from None

    def token(self, id: int) -> str | None:
        """How the tokenizer writes one token, or None if there is no such id."""
        return self._tokenizer.id_to_token(id)

    def id_of(self, token: str) -> int | None:
        """The id of a token by its text, or None."""
        return self._tokenizer.token_to_id(token)

    def is_silent(self, id: int, *, skip_special: bool = True) -> bool:
        """Whether a token has no text: a special token, or an id the tokenizer does not use."""
        return (skip_special and id in self._special) or self._tokenizer.id_to_token(id) is None

    def byte(self, id: int) -> int | None:
        """The byte that a token is, of a character the vocabulary does not have; else None."""
        return self._bytes.get(id)

    @functools.cached_property
    def word(self) -> Sequence[int]:
        """A token that is an ordinary word, to stand before others; none if there is none."""
        ids = self._tokenizer.get_vocab(with_added_tokens=False)
        words = (id for token, id in ids.items() if token.isascii() and token.isalpha())
        return list(itertools.islice((id for id in words if not self.is_silent(id)), 1))

    def detokenizer(self, prompt: Sequence[int] = (), *, skip_special: bool = True) -> Detokenizer:
        """A detokenizer for one answer, which follows the tokens of `prompt`."""
        return Detokenizer(self, prompt, skip_special=skip_special)

    def _encode(self, text: str, *, special: bool) -> list[int]:
        ids: list[int] = self._encoding(text, special=special).ids
        return ids

    def _encoding(
        self, text: str, pair: str | None = None, *, special: bool
    ) -> tokenizers.Encoding:
        try:
            return self._tokenizer.encode(text, pair, add_special_tokens=special)
        except (TypeError, UnicodeEncodeError):
            raise RequestError("the prompt is not valid Unicode text", param="prompt") from None
        except BaseException as error:
            if not _is_fault(error):
                raise
            raise RequestError(
                "the model's tokenizer fails on this text", param="prompt", fix=TOKENS_FIX
            ) from None

    def _named_id(self, name: str) -> int | None:
        text = self.named.get(name)
        return None if text is None else self.id_of(text)


def read_tokenizer(folder: Path, vocab: int) -> Tokenizer:
    """The tokenizer in a model's folder.

    Args:
        vocab: rows of the model's embedding.

    Raises:
        ModelError: a file is missing or damaged, or the tokenizer has ids the model does not.
    """
    path = folder / TOKENIZER
    tokenizer = _load(path)
    check_ids(tokenizer, path, vocab)
    files = read_side_files(folder)
    try:
        add_tokens(tokenizer, files, vocab)
    except BaseException as error:
        raise blamed(error, path) from None
    named = {name: token.content for name, token in files.named.items()}
    return Tokenizer(path, tokenizer, named, read_templates(folder, files.settings, named))


def check_ids(tokenizer: tokenizers.Tokenizer, path: Path, vocab: int) -> None:
    """Refuse a tokenizer with no tokens, or with ids that the model has no row for."""
    ids = read_vocabulary(tokenizer)
    if not ids:
        raise ModelError(f"{path}: has no tokens")
    beyond = {id: token for token, id in ids.items() if id >= vocab}
    if own := beyond.keys() - tokenizer.get_added_tokens_decoder().keys():
        raise ModelError(
            f"{path}: token {shown(beyond[max(own)])} has id {max(own)}, but the model's"
            f" vocab_size is {vocab}",
            fix="the tokenizer belongs to another model: use the files the model came with",
        )
    if beyond:  # a token for padding, say, which was added after the training
        log.warning("%s: the model has no row for %s", path, few(list(beyond.values())))


def _load(path: Path) -> tokenizers.Tokenizer:
    with open(open_regular(path), "rb") as file:
        data = file.read(TOKENIZER_LIMIT + 1)
    if len(data) > TOKENIZER_LIMIT:
        raise ModelError(f"{path}: is larger than the {TOKENIZER_LIMIT:,} bytes that are accepted")
    check_patterns(data, path)
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(data)
    except BaseException as error:
        raise blamed(error, path) from None
    # Some files carry the settings of a training run, which would cut prompts short.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def blamed(error: BaseException, path: Path) -> BaseException:
    """The error to raise where the library does not accept a file, or panics; others stay."""
    if isinstance(error, ModelError) or not _is_fault(error):
        return error
    return ModelError(
        f"{path}: the tokenizer does not work: {' '.join(str(error).split())}",
        fix="download or copy the file again; if it is newer than the tokenizers library here"
        f" ({tokenizers.__version__}), update that",
    )


def _is_fault(error: BaseException) -> bool:
    """Whether an error is the library's. It raises plain `Exception`, and where its own code is at
    fault a panic, which Python does not count among those."""
    return isinstance(error, Exception) or type(error).__module__ == "pyo3_runtime"
