"""Streams that go on at another server, without their client noticing.

    router   --> POST /v1/...        x-kvrt-moves: TICKET                 a stream begins here
    router   --> POST /moves         {"ticket": TICKET}
    stream   --> ...                 : kvrt-moved {"seed": ..., "said": [...], "id": ..., ...}
    router   --> POST /v1/...        x-kvrt-resumes: N                    and it goes on there

What is told of an answer is what follows from nothing else: the tokens that were said, the seed,
and the names that its events have. All else (text, penalties, a constraint's state, what a parser
has read) is made of the tokens again, and their keys and values come from a store that both
servers share, from what is cached, or are computed.

The second request is the first one's body, with what was told as one field more; N is where that
begins. Only a stream of one answer without log-probabilities moves, in a protocol whose events name
nothing that the tokens do not say; others end where they began.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from kvrt.server.entry import entry_of
from kvrt.server.errors import Refusal
from kvrt.server.wire.answers import answer
from kvrt.server.wire.http import headers_of, read_body
from kvrt.server.words.fields import decode

if TYPE_CHECKING:
    from kvrt.server.words.protocol import Call

MOVES = "x-kvrt-moves"
RESUMES = "x-kvrt-resumes"
FIELD = b',"kvrt_resumes":'
MARK = b": kvrt-moved "
"""What the last event of a stream that has moved begins with: one that clients pass over."""

MAX_TICKET, MAX_DIGITS = 128, 12


class Told(msgspec.Struct, frozen=True):
    """Of an answer that has begun elsewhere.

    Args:
        seed: of it.
        said: its tokens.
        id, created: that its events have.
    """

    seed: int
    said: tuple[int, ...]
    id: str = ""
    created: int = 0


class Move:
    """One stream that may have to go."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave = leave
        self.asked = False
        """It goes on elsewhere."""
        self.said: list[int] = []
        """What its client has of it."""

    def begin(self) -> None:
        """Stop here. What was said last may not have been sent, and is said elsewhere then."""
        self.asked = True
        self._leave()


class Moves:
    """The streams that may have to go, by workspace and ticket. Belongs to the event loop."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], Move] = {}

    @contextmanager
    def watched(self, tenant: str, ticket: str | None, move: Move) -> Iterator[Move]:
        """Meanwhile, a workspace can ask the stream to go; None: nobody can."""
        if ticket is None:
            yield move
            return
        self._open[tenant, ticket] = move
        try:
            yield move
        finally:
            if self._open.get((tenant, ticket)) is move:
                del self._open[tenant, ticket]

    def begin_all(self) -> int:
        """All that can go do. How many?"""
        moves = [*self._open.values()]
        for move in moves:
            move.begin()
        return len(moves)

    async def begin(self, request: Request) -> Response:
        """``POST /moves``: the stream with this ticket, which only who asked for it knows, goes."""
        asked = decode(
            await read_body(request.scope, request.receive, 1 << 12), _Ticket, strict=True
        )
        owner = entry_of(request.scope).owner
        assert owner is not None, "nobody else gets here"
        move = self._open.get((owner.tenant, asked.ticket))
        if move is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "no such stream goes on here", code="no_stream")
        move.begin()
        return answer({"moved": True})


class _Ticket(msgspec.Struct):
    ticket: str


def ticket_of(scope: Scope, call: "Call") -> str | None:
    """The ticket of a request's stream; None: it cannot move."""
    given = headers_of(scope, MOVES.encode())
    if len(given) != 1 or not 0 < len(given[0]) <= MAX_TICKET:
        return None
    if not call.stream or not call.moves or len(call.asks) != 1:
        return None
    params = call.asks[0].params
    single = params.n == 1 and params.beam_width == 1
    plain = params.logprobs is None and params.prompt_logprobs is None
    return given[0] if single and plain and not params.scores_only else None


def event_of(told: Told) -> bytes:
    """The last event of a stream that has moved."""
    return MARK + msgspec.json.encode(told) + b"\n\n"


def told_in(event: bytes) -> Told | None:
    """What such an event says; None: it is none.

    Args:
        event: without the empty line at its end.
    """
    try:
        return msgspec.json.decode(event.removeprefix(MARK), type=Told)
    except msgspec.MsgspecError:
        return None


def resumed(body: bytes, told: Told) -> tuple[bytes, int]:
    """The body of a request that goes on with an answer, and its header `RESUMES`."""
    at = len(body.rstrip()) - 1
    return body[:at] + FIELD + msgspec.json.encode(told) + b"}", at


def taken_apart(scope: Scope, body: bytes) -> tuple[bytes, Told | None]:
    """The request as its client made it, and what was told of an answer that has begun.

    Raises:
        Refusal: it is said that there is such an answer, and there is none.
    """
    given = headers_of(scope, RESUMES.encode())
    if not given:
        return body, None
    number = given[-1][:MAX_DIGITS]
    at = int(number) if number.isascii() and number.isdigit() else -1
    rest = body[at:] if 0 <= at <= len(body) else b""
    told = None
    if rest.startswith(FIELD) and rest.endswith(b"}"):
        try:
            told = msgspec.json.decode(rest[len(FIELD) : -1], type=Told)
        except msgspec.MsgspecError:
            told = None
    if told is None or not 0 <= told.seed < 2**64 or min(told.said, default=0) < 0:
        raise Refusal(HTTPStatus.BAD_REQUEST, "what is to be resumed is not told", param=RESUMES)
    return body[:at] + b"}", told


def go_on(call: "Call", told: Told) -> None:
    """The call's answer is one that has begun elsewhere.

    Raises:
        Refusal: it cannot be.
    """
    if not call.stream or not call.moves or len(call.asks) != 1:
        raise Refusal(HTTPStatus.BAD_REQUEST, "this cannot be resumed", param=RESUMES)
    (ask,) = call.asks
    params = replace(ask.params, seed=told.seed)
    call.asks = [replace(ask, params=params, said=told.said)]
    names: dict[str, Any] = {"id": told.id, "created": told.created}
    for name, value in names.items():
        if hasattr(call, name):
            setattr(call, name, value)


def told_of(call: "Call", seed: int, said: list[int]) -> Told:
    """Of an answer, so far."""
    id, created = getattr(call, "id", ""), getattr(call, "created", 0)
    return Told(seed, tuple(said), id, created)
