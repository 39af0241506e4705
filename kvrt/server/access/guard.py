"""The first that a request meets: who asks, and from where. What is not allowed is refused here,
whatever its path or method."""

import base64
from collections.abc import Callable
from contextlib import nullcontext
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from kvrt.net.address import is_loopback
from kvrt.server.access.keys import Owner
from kvrt.server.access.oidc import Credentials
from kvrt.server.entry import ENTRY, Book, Entry
from kvrt.server.errors import Refusal
from kvrt.server.page import FILES
from kvrt.server.wire.http import Reply, headers_of, request_id
from kvrt.server.words.shapes import Words, words_for

OPEN = frozenset({"/livez", "/readyz", "/health", "/v2/health/live", "/v2/health/ready"})
"""Routes that need no key: they tell nothing of anybody."""

METRICS = "/metrics"
BASIC = 'Basic realm="kvrt: any name, and your key as the password", charset="UTF-8"'
"""Asks a browser to ask whoever sits before it."""

OWN_SITE = frozenset({"same-origin", "none"})
"""What a browser says of requests that our own page makes, or somebody by its address."""
ANYBODY = Owner("", "admin")
"""Who asks where no keys are needed. Their pages are shared."""

OTHER = "other"
"""What the audit log has for a path that is no route's own: it may say anything."""

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """Lets a request pass to `app` with an `Entry` in its scope, which has the owner of its key.

    Without keys, at an address that only this machine reaches, pages of a browser on it could ask:
    by a name that was made to lead here, or from a site of their own. Requests with such a Host or
    Origin are refused.

    Args:
        app: the rest.
        book: where requests are entered; probes are not.
        host: where the server listens.
        keys: of which clients need one; None: they need none.
        words: whose words errors are in, by the path that is asked.
        unguarded: routes that need no key.
    """

    def __init__(
        self,
        app: Starlette,
        book: Book,
        host: str,
        keys: Credentials | None,
        words: Callable[[str], Words] = words_for,
        unguarded: frozenset[str] = OPEN,
    ) -> None:
        self._app = app
        self._book = book
        self._routes = frozenset(route.path for route in app.routes if isinstance(route, Route))
        self._keys = keys
        self._words = words
        self._open = unguarded
        names = LOOPBACK_NAMES | {host.lower()}
        self._hosts = names if keys is None and is_loopback(host) else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            send = _refusing(send)
        elif scope["type"] != "http":
            raise ValueError("this server speaks HTTP and WebSocket alone")
        path = scope["path"]
        route = path if path in self._routes else OTHER
        parent = "".join(headers_of(scope, b"traceparent")[-1:])
        entry = scope[ENTRY] = Entry(request_id(scope), route, parent, words=self._words(path))
        entered = nullcontext() if path in self._open else self._book.entered(entry)
        with entered:
            await self._admit(entry, scope, receive, entry.watching(send))

    async def _admit(self, entry: Entry, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            entry.owner = self._owner(scope)
        except Refusal as refusal:
            reply = Reply(send, {"x-request-id": entry.id})
            await reply.json(entry.words.refused(refusal), refusal.status, refusal.headers)
            return
        await self._app(scope, receive, send)

    def _owner(self, scope: Scope) -> Owner:
        path = scope["path"]
        self._check_hosts(scope)
        if self._keys is None or path in self._open:
            return ANYBODY
        owner = self._keys.owner(_given(scope))
        if owner is None:
            raise Refusal(
                HTTPStatus.UNAUTHORIZED,
                "a valid key is needed, as Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"www-authenticate": BASIC if path in FILES else "Bearer"},
            )
        of_all = owner.role == "metrics" or owner.rules  # metrics tell of every workspace
        if not of_all if path == METRICS else owner.role == "metrics":
            where = " in a workspace" if owner.workspace and owner.role == "admin" else ""
            why = f"a key of role {owner.role}{where} is not for this"
            raise Refusal(HTTPStatus.FORBIDDEN, why)
        return owner

    def _check_hosts(self, scope: Scope) -> None:
        if self._hosts is None:
            return
        hosts = [f"//{host}" for host in headers_of(scope, b"host")]
        for url in [*hosts, *headers_of(scope, b"origin")]:
            if _name_of(url) not in self._hosts:
                raise Refusal(
                    HTTPStatus.FORBIDDEN,
                    "without keys, this server answers to its own address alone",
                    code="wrong_host",
                )


def _refusing(send: Send) -> Send:
    """Answers that are no connection, where one was asked for."""

    async def sending(message: Message) -> None:
        if message["type"].startswith("http."):
            message = {**message, "type": f"websocket.{message['type']}"}
        await send(message)

    return sending


def _given(scope: Scope) -> list[str]:
    """The keys that a request brings."""
    keys = []
    for value in headers_of(scope, b"authorization"):
        kind, _, key = value.partition(" ")
        match kind.lower():
            case "bearer":
                keys.append(key.strip())
            case "basic" if _of_our_page(scope):
                keys.append(_password(key.strip()))
            case _:
                keys.append("")
    return [*keys, *headers_of(scope, b"x-api-key")]


def _of_our_page(scope: Scope) -> bool:
    """A browser sends a password that it was told along with whatever any page asks of us. It is
    taken where our own page asks, or nobody's."""
    hosts = headers_of(scope, b"host")
    origins = [origin.partition("://")[2] for origin in headers_of(scope, b"origin")]
    sites = headers_of(scope, b"sec-fetch-site")
    return all([origin] == hosts for origin in origins) and OWN_SITE.issuperset(sites)


def _password(encoded: str) -> str:
    """Of ``name:password`` in base64; nothing, if it is no such thing."""
    try:
        return base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _name_of(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""
