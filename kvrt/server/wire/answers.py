"""Answers that are no stream, and errors in their place."""

from http import HTTPStatus

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kvrt.errors import KvrtError
from kvrt.server.entry import entry_of
from kvrt.server.errors import Refusal, refusal_of


def answer(value: object, status: int = HTTPStatus.OK, **headers: str) -> Response:
    body = msgspec.json.encode(value)
    return Response(body, status, headers, media_type="application/json")


async def refuse(request: Request, error: Exception) -> Response:
    """An error of these routes, in the words of whose they are."""
    refusal = refusal_of(error)
    entry = entry_of(request.scope)
    headers = {**refusal.headers, "x-request-id": entry.id}
    return answer(entry.words.refused(refusal), refusal.status, **headers)


ERRORS = (Refusal, KvrtError)
"""What `refuse` is for."""
