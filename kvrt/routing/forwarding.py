"""A request on its way to one of the servers, and its answer back, as it comes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from functools import cache, partial
from http import HTTPStatus
from time import monotonic

import httpx
import msgspec
from starlette.types import Message, Receive, Scope, Send

from kvrt.routing.prefixes import EVERYBODY, Key, keys_of
from kvrt.routing.replicas import Asked, Replica, Replicas, why
from kvrt.server.access.gate import Gate, shutting_down
from kvrt.server.entry import entry_of
from kvrt.server.errors import Refusal
from kvrt.server.wire.http import WRITE_S, Reply, read_body, until_gone
from kvrt.server.words.shapes import broken_for, shape_for

HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
     "te", "trailer", "transfer-encoding", "upgrade", "host", "content-length", "expect"}
)  # fmt: skip
"""Headers of one connection (RFC 9110, 7.6.1), and those that are made anew."""

ANSWERED_BY = b"x-kvrt-replica"
TOKENS_S = 10.0
"""Nobody waits longer to learn a prompt's tokens: it is then sent where there is least to do."""

MOST_ASKED = 3
"""Servers that a request is sent to, at most: one that breaks whoever gets it breaks no more."""

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


class Prompt:
    """The prompts of a request, and the pages they are made of.

    Args:
        tokens: of all.
        whose: who may share their pages.
    """

    def __init__(self, tokens: Sequence[int], whose: bytes) -> None:
        self.tokens = tokens
        self._whose = whose
        self._keys = cache(partial(keys_of, tokens))

    def told(self, replica: Replica) -> Sequence[Key]:
        """The pages, by the names that they are told of and remembered by."""
        size = replica.prefixes.page_size
        return self._keys(size, self._whose) if size else ()


class Forward:
    """Sends requests on.

    Args:
        replicas: where to.
        client: asks them.
        gate: so many at once.
        max_body: bytes of a request.
        answer_seconds: a request of whose answer nothing came for so long is given up.
    """

    def __init__(
        self,
        replicas: Replicas,
        client: httpx.AsyncClient,
        gate: Gate,
        *,
        max_body: int,
        answer_seconds: float,
    ) -> None:
        self.replicas = replicas
        self._client = client
        self._gate = gate
        self._max_body = max_body
        self._cut = asyncio.get_running_loop().create_future()
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
        while len(asked) < MOST_ASKED:
            found = self.replicas.choose(prompt.tokens, prompt.told, asked)
            if found is None:
                break
            replica, cached = found
            asked.append(replica)
            with self.replicas.asked(replica, len(prompt.tokens), cached) as work:
                request = self._request(replica, scope, body)
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
                    await self._pass_on(scope, send, replica, answer, work, first, pieces)
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
        self, replica: Replica, scope: Scope, body: bytes, before: str = ""
    ) -> httpx.Request:
        path = before + scope["raw_path"].decode("ascii")
        query = scope["query_string"].decode("ascii")
        url = f"{replica.address.url}{path}{'?' if query else ''}{query}"
        headers = [
            (name, value)
            for name, value in scope["headers"]
            if name.decode("latin-1") not in HOP_BY_HOP and name != b"x-request-id"
        ]
        headers.append((b"x-request-id", entry_of(scope).id.encode()))
        return self._client.build_request(
            scope["method"], url, headers=headers, content=body, timeout=self._timeout
        )

    async def _prompt(self, scope: Scope, body: bytes) -> Prompt:
        """The tokens that the servers make of a request; none, if they do not say."""
        whose = EVERYBODY
        for name, value in scope["headers"]:
            if name in (b"authorization", b"x-api-key"):
                whose += name + b":" + value + b"\n"
        nothing = Prompt((), whose)
        if scope["method"] != "POST" or self.replicas.policy != "prefix":
            return nothing
        found = self.replicas.choose((), nothing.told)
        if found is None or len(self.replicas.candidates()) == 1:
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
        for each in self.replicas:
            each.prefixes.page_size = each.prefixes.page_size or counted.page_size
        longest = max(counted.prompts, key=len, default=[])
        return Prompt(longest, EVERYBODY if counted.shared else whose)

    async def _pass_on(
        self,
        scope: Scope,
        send: Send,
        replica: Replica,
        answer: httpx.Response,
        work: Asked,
        piece: bytes,
        pieces: AsyncIterator[bytes],
    ) -> None:
        """The body, as it comes."""
        streams = "content-length" not in answer.headers
        while piece:
            await _timed(send, {"type": "http.response.body", "body": piece, "more_body": True})
            try:
                piece = await anext(pieces, b"")
                if piece and streams:  # the first may say no more than that there is an answer
                    work.said()
            except httpx.HTTPError as error:
                late = isinstance(error, httpx.ReadTimeout)
                if not late:
                    self.replicas.failed(replica, why(error))
                if not streams:  # the client sees that it is not whole
                    raise ConnectionError("the server broke off") from None
                last = broken_for(scope["path"])(_too_late() if late else _gone())
                await _timed(send, {"type": "http.response.body", "body": last, "more_body": True})
                break
        await _timed(send, {"type": "http.response.body", "body": b"", "more_body": False})


def _too_late() -> Refusal:
    return Refusal(HTTPStatus.GATEWAY_TIMEOUT, "the answer took too long", code="timeout")


def _gone() -> Refusal:
    return Refusal(HTTPStatus.BAD_GATEWAY, "the server that answered is gone", code="server_gone")


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
