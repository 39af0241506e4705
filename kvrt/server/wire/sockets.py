"""WebSockets at the routes that ask the model: a message is a request's body, and each event of its
answer is a message. Needs the extra ``websocket``.

    client   {"model": "tiny", "prompt": "a"}
    server   {"id": "cmpl-5f", "choices": [...]}      the events of that route's streams
             ...
             [DONE]                                  also of routes whose streams say it otherwise
    client   the next request

Each message goes the way of a request over HTTP, by the same limits, and to the same logs. A client
that closes the connection ends its request.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from importlib.util import find_spec

import msgspec
from starlette.types import Message, Receive, Scope, Send

from kvrt.server.entry import ENTRY, Book, Entry, entry_of
from kvrt.server.wire.http import EVENTS

DONE = "[DONE]"
DATA = b"data: "
WAITING = 16
"""Messages, at most, that wait for the answer to one before them; who sends more is hung up on."""

SWITCHED = 101
TOO_MANY = 1008

Ask = Callable[[Scope, Receive, Send], Awaitable[None]]


def offered() -> bool:
    """Whether what speaks the protocol is installed."""
    return find_spec("wsproto") is not None


class Socket:
    """One route, as an ASGI application for connections.

    Args:
        ask: the route for requests over HTTP.
        book: where each request is entered.
    """

    def __init__(self, ask: Ask, book: Book) -> None:
        self._ask = ask
        self._book = book

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # that there is a connection
        await send({"type": "websocket.accept"})
        first, inbox = entry_of(scope), _Inbox(receive)
        first.status = SWITCHED
        reading = asyncio.create_task(inbox.read())
        number = 0
        try:
            while (body := await inbox.next()) is not None:
                number += 1
                name = f"{first.id}.{number}"
                entry = Entry(name, first.route, first.parent, first.owner)
                asked = {**scope, "type": "http", "method": "POST", ENTRY: entry}
                with self._book.entered(entry):
                    await self._ask(asked, inbox.receiver(body), _Outbox(send).send)
                if entry.status == 200:
                    await send({"type": "websocket.send", "text": DONE})
            if inbox.overrun:
                await send({"type": "websocket.close", "code": TOO_MANY})
        finally:
            reading.cancel()


class _Inbox:
    """Messages of one client, and when it has gone."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._bodies: asyncio.Queue[bytes | None] = asyncio.Queue(WAITING)
        self._gone = asyncio.Event()
        self.overrun = False

    async def read(self) -> None:
        """Take what comes, until the client goes, or sends too much at once."""
        while (message := await self._receive())["type"] == "websocket.receive":
            if self._bodies.full():
                self.overrun = True
                break
            self._bodies.put_nowait(_streamed(message))
        self._gone.set()

    async def next(self) -> bytes | None:
        """The next request; None: there is none any more."""
        waiting = asyncio.create_task(self._bodies.get())
        gone = asyncio.create_task(self._gone.wait())
        try:
            await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
            return None if self._gone.is_set() else waiting.result()
        finally:
            waiting.cancel()
            gone.cancel()

    def receiver(self, body: bytes) -> Receive:
        """What a request over HTTP with this body would receive."""
        bodies = [body]

        async def receive() -> Message:
            if bodies:
                return {"type": "http.request", "body": bodies.pop(), "more_body": False}
            await self._gone.wait()
            return {"type": "http.disconnect"}

        return receive


class _Outbox:
    """Makes messages of an answer over HTTP."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._kind = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._kind = dict(message["headers"])[b"content-type"]
            return
        for text in self._texts(message.get("body", b"")):
            await self._send({"type": "websocket.send", "text": text.decode()})

    def _texts(self, body: bytes) -> Iterator[bytes]:
        """The JSON of each event, of each line, or of the whole."""
        for line in body.splitlines():
            if self._kind != EVENTS:
                yield line
            elif line.startswith(DATA) and line != DATA + DONE.encode():
                yield line.removeprefix(DATA)


def _streamed(message: Message) -> bytes:
    """A request's body, which asks for a stream; what is no request is refused later."""
    text = message.get("text")
    body: bytes = message.get("bytes") or b"" if text is None else text.encode()
    try:
        asked = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body
    if not isinstance(asked, dict):
        return body
    return msgspec.json.encode({**asked, "stream": True})
