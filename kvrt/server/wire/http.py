"""Bytes in, bytes out: bodies with a limit, JSON, events. Everything that waits has its time."""

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from kvrt.server.errors import Refusal

JSON = b"application/json"
EVENTS = b"text/event-stream; charset=utf-8"
LINES = b"application/x-ndjson"
READ_S = 30.0
"""A whole body has so long to come."""

DISCARD_S, DISCARD_BYTES = 0.05, 64 << 20
"""So long for each piece, and so much in all, is taken of a body that is too long."""

WRITE_S = 60.0
"""A client that takes nothing for so long is gone."""

SILENCE_S = 15.0
"""Where there is nothing to say for so long, a stream says that it is still there, so that nothing
between it and the client takes the connection for dead."""

COMMENT = b": still here\n\n"
"""An event that clients pass over."""

REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


def headers_of(scope: Scope, name: bytes) -> list[str]:
    """All values of a header."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def request_id(scope: Scope) -> str:
    """The client's, if it is of a harmless kind; else a new one."""
    given = headers_of(scope, b"x-request-id")
    if len(given) == 1 and REQUEST_ID.fullmatch(given[0]):
        return given[0]
    return f"req-{secrets.token_hex(12)}"


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body.

    Raises:
        Refusal: it is longer than `limit` bytes, does not come, or is compressed.
    """
    if any(value != "identity" for value in headers_of(scope, b"content-encoding")):
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "compressed bodies are not read")
    declared = headers_of(scope, b"content-length")
    pieces = pieces_of(receive)
    if declared and declared[0].isdigit() and int(declared[0][:20]) > limit:
        await _discard(pieces)
        raise _too_long(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(READ_S):
            async for piece in pieces:
                body += piece
                if len(body) > limit:
                    await _discard(pieces)
                    raise _too_long(limit)
            return bytes(body)
    except TimeoutError:
        raise Refusal(HTTPStatus.REQUEST_TIMEOUT, "the body did not come in time") from None


async def pieces_of(receive: Receive) -> AsyncIterator[bytes]:
    """What comes of a body. Raises `ConnectionError` if the client leaves meanwhile."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client left")
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def _discard(pieces: AsyncIterator[bytes]) -> None:
    """Take the rest of a body that is too long, if it comes soon and is not endless: a client that
    is still sending does not see an answer, but a connection that broke."""
    size = 0
    with contextlib.suppress(TimeoutError, StopAsyncIteration):
        while size < DISCARD_BYTES:
            async with asyncio.timeout(DISCARD_S):
                size += len(await anext(pieces))


def _too_long(limit: int) -> Refusal:
    return Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body is longer than {limit} bytes",
        code="body_too_large",
        headers={"connection": "close"},
    )


async def until_gone(receive: Receive) -> None:
    """Until the client has left; its body has been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Reply:
    """An answer on its way to one client.

    Args:
        send: of ASGI.
        headers: for each answer.
    """

    def __init__(self, send: Send, headers: Mapping[str, str]) -> None:
        self._send = send
        self.headers = dict(headers)
        self._sent = 0.0  # when something was, by the loop's clock
        self._kind = JSON
        self.status = 0
        """Of the answer; 0: it has not begun."""

    async def json(
        self, value: object, status: int = HTTPStatus.OK, headers: Mapping[str, str] = {}
    ) -> None:
        """The whole answer."""
        await self.whole(msgspec.json.encode(value), JSON, status, headers)

    async def whole(
        self,
        body: bytes,
        kind: bytes,
        status: int = HTTPStatus.OK,
        headers: Mapping[str, str] = {},
    ) -> None:
        length = (b"content-length", str(len(body)).encode())
        await self._start(kind, status, headers, length)
        await self._timed({"type": "http.response.body", "body": body})

    async def begin_stream(self, kind: bytes) -> None:
        """The answer is to come in pieces: `EVENTS`, or `LINES` of JSON."""
        self._kind = kind
        await self._start(kind, HTTPStatus.OK, {"cache-control": "no-cache"})

    async def events(self, events: Iterable[bytes], *, more: bool = True) -> None:
        """Send some; none is no message."""
        body = b"".join(events)
        if body or not more:
            await self._timed({"type": "http.response.body", "body": body, "more_body": more})

    @contextlib.asynccontextmanager
    async def kept_alive(self) -> AsyncIterator[None]:
        """Meanwhile, events that have begun are never silent for longer than `SILENCE_S`. Lines of
        JSON have nothing that clients would pass over."""
        if self._kind != EVENTS:
            yield
            return
        keeping = asyncio.create_task(self._keep_alive())
        try:
            yield
        finally:
            keeping.cancel()

    async def _keep_alive(self) -> None:
        clock = asyncio.get_running_loop().time
        with contextlib.suppress(ConnectionError):  # who asks for the answer finds out, too
            while True:
                silent = clock() - self._sent
                if silent >= SILENCE_S:
                    await self.events([COMMENT])
                    silent = 0.0
                await asyncio.sleep(SILENCE_S - silent)

    async def _start(
        self, kind: bytes, status: int, headers: Mapping[str, str], *more: tuple[bytes, bytes]
    ) -> None:
        self.status = status
        pairs = {**self.headers, **headers}.items()
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in pairs]
        start = {"type": "http.response.start", "status": int(status)}
        await self._timed({**start, "headers": [(b"content-type", kind), *more, *encoded]})

    async def _timed(self, message: dict[str, Any]) -> None:
        self._sent = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(WRITE_S):
                await self._send(message)
        except TimeoutError:
            raise ConnectionError("the client takes nothing") from None


def event(value: object, name: str | None = None) -> bytes:
    """One server-sent event."""
    data = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + data + b"\n\n"
