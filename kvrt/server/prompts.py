"""``/tokens/...``: a request's prompts as tokens, for who chooses which server answers it."""

import asyncio
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from kvrt.engine.prompts import read_prompt
from kvrt.server.entry import entry_of
from kvrt.server.service import Service
from kvrt.server.wire.answers import answer
from kvrt.server.wire.http import read_body
from kvrt.server.words.protocol import Api


class Prompts:
    """The routes.

    Args:
        service: that they are about.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    def of(self, api: Api) -> Callable[[Request], Awaitable[Response]]:
        """Answers with the tokens of what a request of that protocol asks, and asks nothing."""

        async def tokens(request: Request) -> Response:
            served = self._service.served
            body = await read_body(request.scope, request.receive, served.max_body)
            prompts = [
                (await asyncio.to_thread(read_prompt, each.prompt, served.model))[0]
                for each in api.read(body).asks
            ]
            owner = entry_of(request.scope).owner
            return answer(
                {
                    "prompts": prompts,
                    "page_size": self._service.runtime.runtime.config.page_size,
                    "shared": owner is not None and not owner.tenant,
                }
            )

        return tokens
