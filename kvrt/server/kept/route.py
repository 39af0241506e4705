"""``DELETE /answers``: forgets the answers that are kept for one's workspace."""

from collections.abc import Callable, Iterable
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

from kvrt.server.desk import Desk
from kvrt.server.entry import entry_of
from kvrt.server.errors import Refusal
from kvrt.server.service import Service
from kvrt.server.wire.answers import answer


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
        tenant = request.query_params.get("workspace", owner.tenant)
        if tenant != owner.tenant and not owner.sees(tenant):
            raise Refusal(HTTPStatus.FORBIDDEN, "that is not this key's workspace", "workspace")
        kept = [each.kept for each in self._services() if each.kept is not None]
        gone = sum(each.forget(tenant) for each in kept)
        if self._desk.similar is not None:
            gone += self._desk.similar.forget(tenant)
        return answer({"forgotten": gone})
