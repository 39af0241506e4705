"""Errors as Ollama's clients read them, and its streams: a JSON object a line."""

from typing import Any

import msgspec

from kvrt.server.errors import Refusal


def refused(refusal: Refusal) -> dict[str, Any]:
    """The body of an answer that is an error."""
    return {"error": refusal.message}


def broken(refusal: Refusal) -> bytes:
    """The last line of a stream that could not go on."""
    return line(refused(refusal))


def line(value: object) -> bytes:
    return msgspec.json.encode(value) + b"\n"
