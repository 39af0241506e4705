"""Errors as Anthropic's clients read them."""

from typing import Any

from kvrt.server.errors import Refusal
from kvrt.server.wire.http import event

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error",
         413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
         504: "timeout_error"}  # fmt: skip


def refused(refusal: Refusal) -> dict[str, Any]:
    """The body of an answer that is an error."""
    ours = "invalid_request_error" if refusal.status < 500 else "api_error"
    kind = TYPES.get(refusal.status, ours)
    return {"type": "error", "error": {"type": kind, "message": refusal.message}}


def broken(refusal: Refusal) -> bytes:
    """The last event of a stream that could not go on."""
    return event(refused(refusal), "error")
