"""Errors as OpenAI's clients read them."""

from typing import Any

from kvrt.server.errors import Refusal
from kvrt.server.wire.http import event

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error",
         429: "rate_limit_error"}  # fmt: skip


def refused(refusal: Refusal) -> dict[str, Any]:
    """The body of an answer that is an error."""
    ours = "invalid_request_error" if refusal.status < 500 else "server_error"
    return {
        "error": {
            "message": refusal.message,
            "type": TYPES.get(refusal.status, ours),
            "param": refusal.param,
            "code": refusal.code,
        }
    }


def broken(refusal: Refusal) -> bytes:
    """The last event of a stream that could not go on; no ``[DONE]`` follows."""
    return event(refused(refusal))
