"""The routes of a server of several models: each request goes to the application of the model that
it names, once that is loaded."""

import asyncio
import logging
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.types import Message, Receive, Scope, Send

from kvrt.errors import ConfigError
from kvrt.server import page
from kvrt.server.app import Handler, application
from kvrt.server.entry import entry_of
from kvrt.server.errors import Refusal, refusal_of
from kvrt.server.fleet.models import Models
from kvrt.server.fleet.routes import ModelRoutes
from kvrt.server.kept.route import Forgetting
from kvrt.server.openai.audio import Audio
from kvrt.server.openai.embeddings import Embeddings
from kvrt.server.rerank import Rerank
from kvrt.server.telemetry.profile import Profile
from kvrt.server.tenants.metering import Asked, metered
from kvrt.server.tenants.route import Usage
from kvrt.server.tenants.steering import Steering
from kvrt.server.wire.http import Reply, read_body, until_gone
from kvrt.server.words.shapes import shape_for
from kvrt.units import parse_seconds

log = logging.getLogger(__name__)

ASKING = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/messages",
    "/v1/responses",
    "/api/chat",
    "/api/generate",
)
ABOUT = (
    "/api/show",
    "/tokenize",
    "/detokenize",
    "/v1/messages/count_tokens",
    "/v1/responses/input_tokens",
)
"""Routes whose requests name a model: those that ask it, and those that it must be there for."""

OWN = frozenset({"router", "app", "endpoint", "path_params", "route"})
"""What an application keeps in the scope of a request, and the next has to find out for itself."""

LEFT = 499


class Peeked(msgspec.Struct):
    """What a request is sent on by. Its other fields are for whom it is sent to."""

    model: str | None = None
    name: str | None = None
    keep_alive: int | float | str | None = None
    prompt: msgspec.Raw = msgspec.Raw(b"")
    messages: msgspec.Raw = msgspec.Raw(b"")

    @property
    def asks(self) -> bool:
        """Whether there is something to be answered."""
        empty = {b"", b"null", b'""', b"[]"}
        return bytes(self.prompt) not in empty or bytes(self.messages) not in empty


def make_models_app(
    models: Models, embeddings: Embeddings, rerank: Rerank, audio: Audio
) -> Starlette:
    """Everything that is served; `Guard` stands before it."""
    routes = ModelRoutes(models)
    desk = models.desk
    steering = Steering(desk)
    profile = Profile(
        desk.config,
        lambda: {name: one.service.runtime.runtime for name, one in models.loaded.items()},
    )
    gets: dict[str, Handler] = {
        **{path: page.handler(path) for path in page.FILES},
        "/status": routes.status,
        "/usage": Usage(desk.accounts, desk.config.usage).usage,
        **steering.gets,
        "/livez": routes.live,
        "/readyz": routes.ready,
        "/health": routes.ready,
        "/v2/health/live": routes.live,
        "/v2/health/ready": routes.ready,
        "/v2/models/{name:path}/ready": routes.model_ready,
        "/metrics": routes.metrics,
        "/version": routes.version,
        "/models/sse": routes.events,
        "/v1/models": routes.list,
        "/v1/models/{name:path}": routes.one,
        "/api/version": routes.version,
        "/api/tags": routes.tags,
        "/api/ps": routes.ps,
    }
    beside: dict[str, Asked] = {
        "/v1/embeddings": embeddings,
        "/rerank": rerank,
        "/v1/rerank": rerank,
        "/v2/rerank": rerank,
    }
    posts: dict[str, Handler] = {
        **steering.posts,
        "/models/load": routes.load,
        "/models/wake": routes.load,
        "/models/sleep": routes.sleep,
        "/models/unload": routes.unload,
        "/moves": desk.moves.begin,
        "/profile": profile.record,
        **{path: metered(desk.accounts, path, asked) for path, asked in beside.items()},
        **audio.handlers(desk.accounts),
    }
    endpoints = {path: Sent(models, path) for path in (*ASKING, *ABOUT)}
    deletes: dict[str, Handler] = {
        **steering.deletes,
        "/answers": Forgetting(
            desk, lambda: [one.service for one in models.loaded.values()]
        ).forget,
        "/profile": profile.end,
    }
    return application(gets, posts, deletes, endpoints, desk.book)


class Sent:
    """One route, as an ASGI application: it finds out which model is meant, and waits for it.

    Args:
        models: that there are.
        path: of the route.
    """

    def __init__(self, models: Models, path: str) -> None:
        self._models = models
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        entry = entry_of(scope)
        reply = Reply(send, {"x-request-id": entry.id})
        try:
            await self._send_on(scope, receive, send, reply)
        except ConnectionError:
            entry.status = LEFT
        except Exception as error:
            refusal = refusal_of(error)
            if refusal.code == "internal":
                log.exception("a request to %s failed", self._path)
            body = shape_for(self._path)(refusal)
            await reply.json(body, refusal.status, refusal.headers)
            entry.status = refusal.status

    async def _send_on(self, scope: Scope, receive: Receive, send: Send, reply: Reply) -> None:
        body = await read_body(scope, receive, self._models.max_body)
        asked = _peek(body)
        wanted = asked.model if asked.model is not None else asked.name
        if wanted is None:
            raise Refusal(
                HTTPStatus.BAD_REQUEST,
                "model: this server has several, and a request has to name one",
                param="model",
            )
        name = await self._models.named(wanted)
        keep = _keep_alive(asked) if self._path.startswith("/api/") else None
        if keep == 0 and not asked.asks and self._path in ASKING:
            self._models.rest(name, "unloaded")
            await reply.json(self._unloaded(wanted))
            return
        left = asyncio.ensure_future(until_gone(receive))
        try:
            async with self._models.using(name, left, keep) as loaded:
                left.cancel()
                inner = {key: value for key, value in scope.items() if key not in OWN}
                await loaded.app(inner, _again(body, receive), send)
        finally:
            left.cancel()

    def _unloaded(self, name: str) -> dict[str, Any]:
        """What Ollama's clients are told."""
        said = {"message": {"role": "assistant", "content": ""}}
        return {
            "model": name,
            "created_at": datetime.now(UTC).isoformat(),
            **(said if self._path == "/api/chat" else {"response": ""}),
            "done": True,
            "done_reason": "unload",
        }


def _peek(body: bytes) -> Peeked:
    try:
        return msgspec.json.decode(body, type=Peeked)
    except msgspec.ValidationError:
        raise Refusal(
            HTTPStatus.BAD_REQUEST, "the body has to be an object, and model a text", param="model"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refusal(HTTPStatus.BAD_REQUEST, "the body is not valid JSON") from None


def _keep_alive(asked: Peeked) -> float | None:
    """Seconds; infinite: always."""
    if asked.keep_alive is None:
        return None
    try:
        seconds = parse_seconds(str(asked.keep_alive))
    except ConfigError as error:
        raise Refusal(400, f"keep_alive: {error}", param="keep_alive") from None
    return seconds if seconds >= 0 else float("inf")


def _again(body: bytes, receive: Receive) -> Receive:
    """A request whose body was read, to be read once more."""
    bodies = [body]

    async def receiving() -> Message:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        return await receive()

    return receiving
