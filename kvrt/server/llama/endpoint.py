"""A route that asks the model, whose answers have slots."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from starlette.types import Scope

from kvrt.server.asking import Ask
from kvrt.server.endpoint import Endpoint
from kvrt.server.entry import Entry
from kvrt.server.llama.front import Front
from kvrt.server.llama.places import WAITS, Turn
from kvrt.server.tenants.accounts import Visit
from kvrt.server.wire.http import Reply
from kvrt.server.words.protocol import Api, Call


@runtime_checkable
class Seated(Protocol):
    """A call whose answers tell their slots."""

    asks: Sequence[Ask]
    turns: Sequence[Turn]
    told: Mapping[str, Any]
    """How its tokens are chosen."""

    @property
    def id_slot(self) -> int: ...


class SeatedEndpoint(Endpoint):
    """As `Endpoint`.

    Args:
        front: has the slots.
    """

    def __init__(self, front: Front, route: str, api: Api) -> None:
        super().__init__(front.service, route, api)
        self._front = front

    async def _answer(
        self, call: Call, scope: Scope, reply: Reply, entry: Entry, visit: Visit
    ) -> None:
        answers = sum(each.params.n for each in call.asks)
        seated = call if isinstance(call, Seated) else None
        told = {} if seated is None else seated.told
        wanted = WAITS if seated is None else seated.id_slot
        if wanted >= self._front.face.slots:
            wanted = WAITS  # as llama-server does: it is answered where there is room
        with self._front.places.taken(answers, told, entry, wanted) as turns:
            if seated is not None:
                seated.turns = turns
            await super()._answer(call, scope, reply, entry, visit)
