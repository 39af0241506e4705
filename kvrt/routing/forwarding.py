"""A request on its way to one of the servers, and its answer back, as it comes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from time import monotonic

import httpx
import msgspec
from starlette.types import Message, Receive, Scope, Send

from kvrt.integrations.prefixes import EVERYBODY
from kvrt.routing.replicas import Asked, Replica, Replicas, why
from kvrt.routing.ways import Events, Prompt, Way, moves_of, ticket_for
from kvrt.server.access.gate import Gate, shutting_down
from kvrt.server.entry import entry_of
from kvrt.server.errors import Refusal
from kvrt.server.moving import MOVES, RESUMES, Told, resumed
from kvrt.server.prefilling import PREFILL
from kvrt.server.wire.http import WRITE_S, Reply, read_body, until_gone
from kvrt.server.words.shapes import broken_for, shape_for

HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
     "te", "trailer", "transfer-encoding", "upgrade", "host", "content-length", "expect"}
)  # fmt: skip
"""Headers of one connection (RFC 9110, 7.6.1), and those that are made anew."""

OWN = frozenset({"x-request-id", MOVES, RESUMES, PREFILL})
"""Headers that are between a router and its servers."""

ANSWERED_BY = b"x-kvrt-replica"
TOKENS_S = 10.0
"""Nobody waits longer to learn a prompt's tokens: it is then sent where there is least to do."""

MOST_ASKED = 3
"""Servers that a request is sent to, at most: one that breaks whoever gets it breaks no more."""

LEAST_PREFILL = 256
"""Tokens of a prompt that whoever answers has not cached: fewer are computed there."""

ELSEWHERE = frozenset({429, 502, 503})
"""What a server says that cannot answer now; another may."""


class Counted(msgspec.Struct):
    """The answer of ``/tokens``.

    Args:
        shared: everybody may share their pages.
    """

    prompts: list[list[int]]
    page_size: int
    shared: bool


class Forward:
    """Sends requests on.

    Args:
        replicas: where to.
        prefill: compute long prompts for these; there may be none.
        client: asks them.
        gate: so many at once.
        max_body: bytes of a request.
        answer_seconds: a request of whose answer nothing came for so long is given up.
    """

    def __init__(
        self,
        replicas: Replicas,
        prefill: Replicas,
        client: httpx.AsyncClient,
        gate: Gate,
        *,
        max_body: int,
        answer_seconds: float,
    ) -> None:
        self.replicas = replicas
        self._prefill = prefill
        self._client = client
        self._gate = gate
        self._max_body = max_body
        self._cut = asyncio.get_running_loop().create_future()
        self._ways: set[Way] = set()
        self._moving: set[asyncio.Task[None]] = set()
        replicas.leaving = self.move_all
        self._timeout = httpx.Timeout(answer_seconds, connect=5.0, pool=None)

    def cut_all(self) -> None:
        """End what still goes on."""
        if not self._cut.done():
            self._cut.set_result(None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application, for every route that is sent on."""
        entry = entry_of(scope)
        reply = Reply(send, {"x-request-id": entry.id})
        try:
            await self._reply(scope, receive, send, reply)
        except ConnectionError:
            entry.status = 499

    async def _reply(self, scope: Scope, receive: Receive, send: Send, reply: Reply) -> None:
        words = shape_for(scope["path"])
        try:
            with self._gate.enter(1):
                body = await read_body(scope, receive, self._max_body)
                answering = asyncio.ensure_future(self._answer(scope, send, body))
                gone = asyncio.ensure_future(until_gone(receive))
                try:
                    await asyncio.wait(
                        {answering, gone, self._cut}, return_when=asyncio.FIRST_COMPLETED
                    )
                    if not answering.done():
                        if self._cut.done() and not entry_of(scope).status:
                            raise shutting_down()
                        raise ConnectionError("the client left, or it is cut off")
                    await answering
                finally:
                    for task in (answering, gone):
                        task.cancel()
                    await asyncio.wait({answering, gone})
        except Refusal as refusal:
            await reply.json(words(refusal), refusal.status, refusal.headers)

    async def _answer(self, scope: Scope, send: Send, body: bytes) -> None:
        """Ask one after the other until one begins to answer; never a second after that."""
        asked: list[Replica] = []
        prompt = await self._prompt(scope, body)
        await self._compute(scope, body, prompt)
        while len(asked) < MOST_ASKED:
            found = self.replicas.choose(prompt.tokens, prompt.told, asked)
            if found is None:
                break
            replica, cached = found
            asked.append(replica)
            with self.replicas.asked(replica, len(prompt.tokens), cached) as work:
                way = Way(scope, send, body, prompt, replica, ticket_for(scope))
                request = self._request(replica, scope, body, headers=moves_of(way))
                try:
                    answer = await self._client.send(request, stream=True)
                except httpx.HTTPError as error:
                    self._blame(replica, error)
                    continue
                async with contextlib.aclosing(answer):
                    others = len(asked) < MOST_ASKED and self.replicas.candidates(asked)
                    if answer.status_code in ELSEWHERE and others:
                        continue
                    pieces = answer.aiter_raw()
                    try:
                        first = await anext(pieces, b"")
                    except httpx.HTTPError as error:  # nothing of it has been passed on
                        self._blame(replica, error)
                        continue
                    work.begin()
                    if answer.is_success:
                        replica.prefixes.asked(prompt.told(replica), monotonic())
                    await _timed(send, _start(answer, replica))
                    told = await self._pass_on(way, answer, work, first, pieces)
            while told is not None:
                told = await self._resume(way, told)
            return
        raise Refusal(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "no server is ready" if not asked else "none of the servers could be asked",
            code="no_server",
            headers={"retry-after": "1"},
        )

    def _blame(self, replica: Replica, error: httpx.HTTPError) -> None:
        """The server has failed; unless it is the request that takes so long or cannot be sent.

        Raises:
            Refusal: it is, and no other server is asked.
        """
        match error:
            case httpx.ReadTimeout():
                raise _too_late()
            case httpx.LocalProtocolError():
                raise Refusal(HTTPStatus.BAD_REQUEST, "this request cannot be sent on")
        self.replicas.failed(replica, why(error))

    def _request(
        self,
        replica: Replica,
        scope: Scope,
        body: bytes,
        before: str = "",
        headers: Mapping[str, str] = {},
    ) -> httpx.Request:
        path = before + scope["raw_path"].decode("ascii")
        query = scope["query_string"].decode("ascii")
        url = f"{replica.address.url}{path}{'?' if query else ''}{query}"
        given = [
            (name, value)
            for name, value in scope["headers"]
            if name.decode("latin-1") not in HOP_BY_HOP | OWN
        ]
        own = {"x-request-id": entry_of(scope).id, **headers}
        given += [(name.encode(), value.encode()) for name, value in own.items()]
        return self._client.build_request(
            scope["method"], url, headers=given, content=body, timeout=self._timeout
        )

    async def _prompt(self, scope: Scope, body: bytes) -> Prompt:
        """The tokens that the servers make of a request; none, if they do not say."""
        whose = EVERYBODY
        for name, value in scope["headers"]:
            if name in (b"authorization", b"x-api-key"):
                whose += name + b":" + value + b"\n"
        nothing = Prompt((), whose)
        prefills = bool(self._prefill.candidates())
        if scope["method"] != "POST" or (self.replicas.policy != "prefix" and not prefills):
            return nothing
        found = self.replicas.choose((), nothing.told)
        if found is None or (len(self.replicas.candidates()) == 1 and not prefills):
            return nothing
        replica = found[0]
        try:
            async with asyncio.timeout(TOKENS_S):
                answer = await self._client.send(self._request(replica, scope, body, "/tokens"))
        except httpx.HTTPError as error:
            self._blame(replica, error)
            return nothing
        except TimeoutError:
            return nothing
        if not answer.is_success:
            return nothing
        try:
            counted = msgspec.json.decode(answer.content, type=Counted)
        except msgspec.MsgspecError:
            return nothing
        for each in (*self.replicas, *self._prefill):
            each.prefixes.page_size = each.prefixes.page_size or counted.page_size
        longest = max(counted.prompts, key=len, default=[])
        return Prompt(longest, EVERYBODY if counted.shared else whose)

    async def _compute(self, scope: Scope, body: bytes, prompt: Prompt) -> None:
        """Have a long prompt computed by a server for that, if there is one, so that whoever
        answers begins with its pages. Where that fails, whoever answers computes it."""
        found = self._prefill.choose(prompt.tokens, prompt.told)
        answers = self.replicas.choose(prompt.tokens, prompt.told)
        if found is None or answers is None or len(prompt.tokens) - answers[1] < LEAST_PREFILL:
            return
        replica, cached = found
        with self._prefill.asked(replica, len(prompt.tokens), cached):
            request = self._request(replica, scope, body, headers={PREFILL: "1"})
            try:
                answer = await self._client.send(request)
            except httpx.HTTPError as error:
                if not isinstance(error, httpx.ReadTimeout):
                    self._prefill.failed(replica, why(error))
                return
            if answer.is_success:
                replica.prefixes.asked(prompt.told(replica), monotonic())

    async def _pass_on(
        self,
        way: Way,
        answer: httpx.Response,
        work: Asked,
        piece: bytes,
        pieces: AsyncIterator[bytes],
    ) -> Told | None:
        """The body, as it comes. If its stream has moved, what is told of it."""
        whole = "content-length" in answer.headers
        events = Events() if way.ticket is not None and not whole else None
        self._ways.add(way)
        try:
            while piece:
                if events is not None:
                    piece = events.push(piece)
                if piece:
                    await _timed(way.send, _body(piece))
                piece = await anext(pieces, b"")
                if piece and not whole:  # the first may say no more than that there is an answer
                    work.said()
        except httpx.HTTPError as error:
            late = isinstance(error, httpx.ReadTimeout)
            if not late:
                self.replicas.failed(way.replica, why(error))
            if whole:  # the client sees that it is not whole
                raise ConnectionError("the server broke off") from None
            await self._break_off(way, _too_late() if late else _gone())
            return None
        finally:
            self._ways.discard(way)
        if events is not None:
            if events.told is not None:
                return events.told
            await _timed(way.send, _body(events.rest))
        await _timed(way.send, _body(b"", more=False))
        return None

    async def _break_off(self, way: Way, refusal: Refusal) -> None:
        """The last event of a stream that has no other end."""
        await _timed(way.send, _body(broken_for(way.scope["path"])(refusal)))
        await _timed(way.send, _body(b"", more=False))

    # --- streams that move --------------------------------------------------------------------

    def move_all(self, replica: Replica) -> None:
        """Streams of a server go on at others, if there are any."""
        if not self.replicas.candidates([replica]):
            return
        for way in [way for way in self._ways if way.replica is replica and way.ticket]:
            task = asyncio.create_task(self._move(way))
            self._moving.add(task)
            task.add_done_callback(self._moving.discard)

    async def _move(self, way: Way) -> None:
        """Ask a server to let a stream go. One that does not goes on with it."""
        keys = [
            (name, value)
            for name, value in way.scope["headers"]
            if name in (b"authorization", b"x-api-key")
        ]
        with contextlib.suppress(httpx.HTTPError):
            await self._client.post(
                f"{way.replica.address.url}/moves",
                json={"ticket": way.ticket},
                headers=keys,
                timeout=TOKENS_S,
            )

    async def _resume(self, way: Way, told: Told) -> Told | None:
        """Go on with a stream that has left its server, at another; if it leaves that, too, what is
        told of it then."""
        asked = [way.replica]
        body, at = resumed(way.body, told)
        while len(asked) <= MOST_ASKED:
            found = self.replicas.choose(way.prompt.tokens, way.prompt.told, asked)
            if found is None:
                break
            way.replica, cached = found
            way.ticket = ticket_for(way.scope)
            asked.append(way.replica)
            with self.replicas.asked(way.replica, len(way.prompt.tokens), cached) as work:
                headers = {**moves_of(way), RESUMES: str(at)}
                request = self._request(way.replica, way.scope, body, headers=headers)
                try:
                    answer = await self._client.send(request, stream=True)
                    async with contextlib.aclosing(answer):
                        if not answer.is_success:
                            continue
                        pieces = answer.aiter_raw()
                        first = await anext(pieces, b"")
                        work.begin()
                        return await self._pass_on(way, answer, work, first, pieces)
                except httpx.HTTPError as error:  # nothing of it has been passed on
                    if not isinstance(error, httpx.ReadTimeout):
                        self.replicas.failed(way.replica, why(error))
        await self._break_off(way, _gone())
        return None


def _too_late() -> Refusal:
    return Refusal(HTTPStatus.GATEWAY_TIMEOUT, "the answer took too long", code="timeout")


def _gone() -> Refusal:
    return Refusal(HTTPStatus.BAD_GATEWAY, "the server that answered is gone", code="server_gone")


def _body(piece: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": piece, "more_body": more}


def _start(answer: httpx.Response, replica: Replica) -> Message:
    """The head of an answer, as the client gets it."""
    headers = [
        (name.lower(), value)
        for name, value in answer.headers.raw
        if name.decode("latin-1").lower() not in HOP_BY_HOP
    ]
    if length := answer.headers.get("content-length"):
        headers.append((b"content-length", length.encode()))
    headers.append((ANSWERED_BY, replica.id.encode()))
    return {"type": "http.response.start", "status": answer.status_code, "headers": headers}


async def _timed(send: Send, message: Message) -> None:
    try:
        async with asyncio.timeout(WRITE_S):
            await send(message)
    except TimeoutError:
        raise ConnectionError("the client takes nothing") from None
