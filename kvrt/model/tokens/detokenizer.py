"""Token ids to text, one token at a time.

A token is not a piece of text: a character can be cut across several tokens, and how a token reads
can depend on its neighbours. So text is given out only when no later token can change it, and the
pieces joined are the text of all tokens together.

    window    [ tokens of text given out | the newest ]       decoded together for each new token
    text      "...Grü"                    "ß" + U+FFFD        U+FFFD: a character not complete yet
                      |<- the next piece ->|

Tokens that are single bytes (``<0xE2>``) wait outside the window until they make a character; bytes
that never will are U+FFFD each. Only here the text differs from the tokenizer's own for the whole:
that has U+FFFD for complete characters too if bad bytes stand right beside them, which is not known
before the run of bytes ends, and it may never end.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

REPLACEMENT = "\ufffd"
KEEP = 8
"""Tokens of context in the window. A decoder looks at the first token and at neighbours only, and
a character has at most 4 bytes."""


class Decoding(Protocol):
    """What a detokenizer needs of a tokenizer."""

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str: ...

    def is_silent(self, id: int, *, skip_special: bool) -> bool: ...

    def byte(self, id: int) -> int | None: ...

    @property
    def word(self) -> Sequence[int]: ...


class Detokenizer:
    """The text of one answer, as it grows.

    Args:
        tokenizer: decodes.
        prompt: the tokens before the answer. They matter to its first word: decoders of the
            SentencePiece kind drop the space in front of the first token they see. A character
            that the prompt begins and the answer completes is the answer's.
        skip_special: special tokens have no text.
    """

    def __init__(
        self, tokenizer: Decoding, prompt: Sequence[int] = (), *, skip_special: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._window: list[int] = []
        self._shown = 0
        self._waiting: list[int] = []
        self._owed = 0  # U+FFFD that come next, and are the prompt's
        for token in self._tail(prompt):
            self._push(token)
        self._owed = len(self._rest())

    def push(self, token: int) -> str:
        """Add a token; returns the text that has become certain, often "" and seldom long."""
        return self._own(self._push(token))

    def flush(self) -> str:
        """The rest of the text, when no more tokens come: what was held back as incomplete."""
        piece = self._own(self._rest())
        self._window, self._shown, self._waiting = [], 0, []
        return piece

    def _push(self, token: int) -> str:
        if self._is_silent(token):
            return ""
        if self._tokenizer.byte(token) is None:
            return self._spoil() + self._add([token])
        piece = self._spoil() if self._reads([*self._waiting, token]) == "bad" else ""
        self._waiting.append(token)
        match self._reads(self._waiting):
            case "bad":
                piece += self._spoil()
            case "whole":
                whole, self._waiting = self._waiting, []
                piece += self._add(whole)
        return piece

    def _add(self, tokens: list[int]) -> str:
        """The text that is certain with `tokens`: one that is no byte, or a character's bytes."""
        self._window += tokens
        text = self._decode(self._window)
        # A last U+FFFD may be a character whose other bytes are still to come; one before it is
        # not, because bytes have followed it that did not complete it.
        piece = text[self._shown : len(text) - text.endswith(REPLACEMENT)]
        self._shown += len(piece)
        if len(self._window) > 2 * KEEP:
            self._shorten(held=len(text) - self._shown)
        return piece

    def _shorten(self, held: int) -> None:
        """Drop tokens in front of the window, of which `held` characters are not given out."""
        first = len(self._window) - KEEP
        while 0x80 <= (self._tokenizer.byte(self._window[first]) or 0) < 0xC0:
            first += 1  # begin with the first byte of a character
        del self._window[:first]
        self._shown = len(self._decode(self._window)) - held

    def _spoil(self) -> str:
        """The bytes that wait are no character. The next ones must be decoded without them."""
        if not self._waiting:
            return ""
        piece, self._waiting = self._rest(), []
        self._window = list(self._tokenizer.word)
        self._shown = len(self._decode(self._window))
        return piece

    def _rest(self) -> str:
        return self._decode(self._window)[self._shown :] + REPLACEMENT * len(self._waiting)

    def _own(self, piece: str) -> str:
        """The piece without what is the prompt's."""
        if not piece:
            return ""
        bad = len(piece) - len(piece.lstrip(REPLACEMENT))
        piece, self._owed = piece[min(bad, self._owed) :], 0
        return piece

    def _reads(self, tokens: Sequence[int]) -> Literal["whole", "part", "bad"]:
        """What bytes are: a character, the beginning of one, or neither."""
        try:
            bytes(self._tokenizer.byte(token) or 0 for token in tokens).decode()
        except UnicodeDecodeError as error:
            return "part" if error.reason == "unexpected end of data" else "bad"
        return "whole"

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special=self._skip_special) if tokens else ""

    def _is_silent(self, token: int) -> bool:
        return self._tokenizer.is_silent(token, skip_special=self._skip_special)

    def _tail(self, prompt: Sequence[int]) -> list[int]:
        """The last tokens of the prompt, beginning within no character unless it is long past."""
        tail: list[int] = []
        for token in reversed(prompt):
            if self._is_silent(token):
                continue
            tail.append(token)
            if len(tail) >= (KEEP if self._tokenizer.byte(token) is None else 4 * KEEP):
                break
        return tail[::-1]
