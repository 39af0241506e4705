"""Routes that are asked of a model beside the one that answers: they count like the others."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from kvrt.server.entry import entry_of
from kvrt.server.errors import refusal_of
from kvrt.server.tenants.accounts import Accounts, Visit
from kvrt.server.wire.answers import answer
from kvrt.server.wire.http import read_body


class Asked(Protocol):
    """What makes vectors, or sorts texts."""

    max_body: int

    def check_there(self) -> object:
        """Raises `Refusal` if there is no model for it."""

    async def of(self, body: bytes) -> dict[str, Any]:
        """The answer to a request's body, which names its `model` and has its ``usage``."""


def metered(
    accounts: Accounts, route: str, asked: Asked
) -> Callable[[Request], Awaitable[Response]]:
    """The route's handler."""

    async def create(request: Request) -> Response:
        asked.check_there()
        entry = entry_of(request.scope)
        assert entry.owner is not None, "nobody else gets here"
        body = await read_body(request.scope, request.receive, asked.max_body)
        with accounts.visit(entry.owner, route, entry.id) as visit:
            made = answer(await counted(visit, asked, body))
            made.headers.update(visit.headers)
            return made

    return create


async def counted(visit: Visit, asked: Asked, body: bytes) -> dict[str, Any]:
    """The answer. It may take as many tokens as its body has bytes; where a question stands before
    each of many texts, it may turn out to be more."""
    if visit.reserves:
        visit.reserve(len(body))
    try:
        made = await asked.of(body)
    except Exception as error:
        visit.status = refusal_of(error).status
        raise
    visit.status, visit.model = 200, made["model"]
    visit.took(made["usage"]["prompt_tokens"], 0, 0)
    return made
