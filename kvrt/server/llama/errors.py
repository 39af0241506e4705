"""Errors as the clients of llama.cpp's server read them."""

from http import HTTPStatus
from typing import Any

from kvrt.server.anthropic import errors as anthropic
from kvrt.server.errors import Refusal
from kvrt.server.wire.http import event
from kvrt.server.words.shapes import Words, words_for

TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
         404: "not_found_error", 501: "not_supported_error", 503: "unavailable_error"}  # fmt: skip
TOO_LONG = "exceed_context_size_error"


def refused(refusal: Refusal) -> dict[str, Any]:
    """The body of an answer that is an error."""
    kind = TYPES.get(refusal.status, TYPES[400] if refusal.status < 500 else "server_error")
    if refusal.code == "context_length_exceeded":
        kind = TOO_LONG
    told = {"code": int(refusal.status), "message": refusal.message, "type": kind}
    return {"error": told | dict(refusal.more)}


def broken(refusal: Refusal) -> bytes:
    """The last event of a stream that could not go on."""
    return event(refused(refusal))


def too_long(prompt: int, context: int) -> Refusal:
    """A prompt that fills the context of a slot."""
    return Refusal(
        HTTPStatus.BAD_REQUEST,
        f"request ({prompt} tokens) exceeds the available context size ({context} tokens), try"
        " increasing it",
        code="context_length_exceeded",
        more={"n_prompt_tokens": prompt, "n_ctx": context},
    )


class _Own:
    refused = staticmethod(refused)
    broken = staticmethod(broken)


def words(path: str) -> Words:
    """Whose words errors are in: llama-server's, but for clients of Anthropic's and Ollama's."""
    return words_for(path) if path.startswith(("/v1/messages", "/api/")) else _Own


__all__ = ["anthropic", "broken", "refused", "too_long", "words"]
