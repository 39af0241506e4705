"""Which protocol's words an error is in, where no protocol has read the request."""

from collections.abc import Callable
from typing import Any, Protocol

from kvrt.server.anthropic import errors as anthropic
from kvrt.server.errors import Refusal
from kvrt.server.ollama import errors as ollama
from kvrt.server.openai import errors as openai


class Words(Protocol):
    """Errors as the clients of a protocol read them."""

    def refused(self, refusal: Refusal, /) -> dict[str, Any]: ...

    def broken(self, refusal: Refusal, /) -> bytes: ...


WORDS: dict[str, Words] = {"/v1/messages": anthropic, "/api/": ollama}


def shape_for(path: str) -> Callable[[Refusal], dict[str, Any]]:
    """What makes the body of an error, for a client that asks there."""
    return words_for(path).refused


def broken_for(path: str) -> Callable[[Refusal], bytes]:
    """What makes the last event of a stream that breaks off, likewise."""
    return words_for(path).broken


def words_for(path: str) -> Words:
    """Whose words a client that asks there reads."""
    found = (words for prefix, words in WORDS.items() if path.startswith(prefix))
    return next(found, openai)
