"""``DELETE /answers``: forgets answers that are kept for one's workspace: all, or some."""

import re
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

from kvrt.server.desk import Desk
from kvrt.server.entry import entry_of
from kvrt.server.errors import Refusal
from kvrt.server.kept.source import Selection
from kvrt.server.service import Service
from kvrt.server.wire.answers import answer

SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?", re.ASCII)
KNOWN = ("workspace", "key", "route", "older")


class Forgetting:
    """The route.

    Args:
        desk: has answers to nearly the same.
        services: of the models that are loaded, which have the others.
    """

    def __init__(self, desk: Desk, services: Callable[[], Iterable[Service]]) -> None:
        self._desk = desk
        self._services = services

    async def forget(self, request: Request) -> Response:
        owner = entry_of(request.scope).owner
        assert owner is not None, "nobody else gets here"
        for name in request.query_params:
            # A name that is passed over would forget more than was meant.
            if name not in KNOWN:
                raise Refusal(
                    HTTPStatus.BAD_REQUEST, f"there is {', '.join(KNOWN)}, and nothing else"
                )
        tenant = request.query_params.get("workspace", owner.tenant)
        if tenant != owner.tenant and not owner.sees(tenant):
            raise Refusal(HTTPStatus.FORBIDDEN, "that is not this key's workspace", "workspace")
        older = request.query_params.get("older", "0")
        if not SECONDS.fullmatch(older):
            raise Refusal(HTTPStatus.BAD_REQUEST, "older is a number of seconds", "older")
        selection = Selection(
            tenant,
            request.query_params.get("key"),
            request.query_params.get("route"),
            time.monotonic() - float(older),
        )
        kept = [each.kept for each in self._services() if each.kept is not None]
        gone = sum(each.forget(selection) for each in kept)
        if self._desk.similar is not None:
            gone += self._desk.similar.forget(selection)
        return answer({"forgotten": gone})
