"""Token ids to text, one token at a time.

A token is not a piece of text: a character can be cut across several tokens, and how a token reads
can depend on its neighbours. So text is given out only when no later token can change it, and the
pieces joined are exactly the text of all tokens together.

    window    [ tokens of text given out | tokens since ]     decoded together for each new token
    text      "...Grü"                    "ß" + U+FFFD        U+FFFD: a character not complete yet
                      |<- the next piece ->|
"""

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"
KEEP = 8
"""Tokens of context in the window. A decoder looks at the first token and at neighbours only."""


class Decoding(Protocol):
    """What a detokenizer needs of a tokenizer."""

    def decode(self, ids: Sequence[int]) -> str: ...

    def is_silent(self, id: int) -> bool: ...

    def is_byte(self, id: int) -> bool: ...


class Detokenizer:
    """The text of one answer, as it grows.

    Args:
        tokenizer: decodes.
        prompt: the tokens before the answer. They matter to its first word: decoders of the
            SentencePiece kind drop the space in front of the first token they see.
    """

    def __init__(self, tokenizer: Decoding, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._window = self._tail(prompt)
        self._boundary = len(self._window)
        self._shown = len(tokenizer.decode(self._window)) if self._window else 0

    def push(self, token: int) -> str:
        """Add a token; returns the text that has become certain, often "" and seldom long."""
        if self._tokenizer.is_silent(token):
            return ""
        self._window.append(token)
        if self._tokenizer.is_byte(token):
            # Whether a run of bytes is text is known when it ends: one bad byte spoils them all.
            return ""
        text = self._tokenizer.decode(self._window)
        # A last U+FFFD may be a character whose other bytes are still to come; one before it is
        # not, because bytes have followed it that did not complete it.
        complete = not text.endswith(REPLACEMENT)
        piece = text[self._shown : None if complete else -1]
        self._shown += len(piece)
        if complete:
            self._advance()
        return piece

    def flush(self) -> str:
        """The rest of the text, when no more tokens come: what was held back as incomplete."""
        if len(self._window) == self._boundary:
            return ""
        piece = self._tokenizer.decode(self._window)[self._shown :]
        self._shown += len(piece)
        return piece

    def _advance(self) -> None:
        """Note that the text so far is complete, and now and then shorten the window."""
        if self._boundary >= KEEP:
            del self._window[: self._boundary]
            self._shown = len(self._tokenizer.decode(self._window))
        self._boundary = len(self._window)

    def _tail(self, prompt: Sequence[int]) -> list[int]:
        """The last tokens of the prompt, not beginning within a run of bytes."""
        tail: list[int] = []
        for token in reversed(prompt):
            if self._tokenizer.is_silent(token):
                continue
            tail.append(token)
            if len(tail) >= KEEP and not self._tokenizer.is_byte(token):
                break
        return tail[::-1]
