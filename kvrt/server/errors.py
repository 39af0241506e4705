"""What a request is refused with, whatever protocol it came by."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from kvrt.errors import CapacityError, ContextFull, KvrtError, RequestError, WeightsUnreadable


@dataclass(eq=False)
class Refusal(Exception):
    """A request is not answered.

    Args:
        status: of HTTP.
        message: what is wrong, and what to do; it quotes nothing that was sent.
        param: the field at fault.
        code: for programs.
        headers: besides.
        more: facts about it, for programs, where a protocol has room for them.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message


def refusal_of(error: BaseException) -> Refusal:
    """What a caller is told of an error. Of one that nobody expected, nothing but that."""
    match error:
        case Refusal():
            return error
        case ContextFull(tokens=tokens, room=room):
            return Refusal(
                HTTPStatus.BAD_REQUEST, _told(error), param="prompt",
                code="context_length_exceeded", more={"n_prompt_tokens": tokens, "n_ctx": room},
            )  # fmt: skip
        case RequestError():
            return Refusal(HTTPStatus.BAD_REQUEST, _told(error), param=error.param or None)
        case CapacityError(needed=needed) if needed:
            return Refusal(HTTPStatus.BAD_REQUEST, _told(error), code="context_length_exceeded")
        case CapacityError():
            return Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE, _told(error), code="no_memory",
                headers={"retry-after": "1"},
            )  # fmt: skip
        case WeightsUnreadable():  # it names a file of the server's
            return Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "a part of the model cannot be read; the server's log says which",
                code="engine",
            )
        case KvrtError():
            return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, _told(error), code="engine")
        case TimeoutError():
            return Refusal(HTTPStatus.GATEWAY_TIMEOUT, "the answer took too long", code="timeout")
        case _:
            return Refusal(
                HTTPStatus.INTERNAL_SERVER_ERROR,
                "the server failed; its log says where",
                code="internal",
            )


def _told(error: KvrtError) -> str:
    return f"{error}: {error.fix}" if error.fix else str(error)
