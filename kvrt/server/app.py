"""The routes, as one ASGI application."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp

from kvrt.server import page
from kvrt.server.adapters import Adapters
from kvrt.server.anthropic.messages import MessagesApi
from kvrt.server.batches.api import BatchesApi
from kvrt.server.batches.files import FilesApi
from kvrt.server.batches.worker import Worker
from kvrt.server.endpoint import Endpoint
from kvrt.server.entry import Book
from kvrt.server.errors import Refusal
from kvrt.server.kept.route import Forgetting
from kvrt.server.ollama.about import About
from kvrt.server.ollama.answers import ChatAnswers, GenerateAnswers
from kvrt.server.openai.audio import Audio
from kvrt.server.openai.chat import ChatCompletions
from kvrt.server.openai.completions import Completions
from kvrt.server.openai.embeddings import Embeddings
from kvrt.server.openai.responses import Responses
from kvrt.server.plain import Plain
from kvrt.server.prompts import Prompts
from kvrt.server.rerank import Rerank
from kvrt.server.service import Service
from kvrt.server.telemetry.profile import Profile
from kvrt.server.telemetry.status import Status
from kvrt.server.tenants.metering import Asked, metered
from kvrt.server.tenants.route import Usage
from kvrt.server.tenants.steering import Steering
from kvrt.server.wire.answers import ERRORS, refuse
from kvrt.server.wire.http import LINES
from kvrt.server.wire.sockets import Socket
from kvrt.server.words.protocol import Api

Handler = Callable[[Request], Awaitable[Response]]
Answering = TypeVar("Answering")
BARE = {
    "/v1/models": "/models",
    "/v1/models/{name:path}": "/models/{name:path}",
    "/v1/embeddings": "/embeddings",
    "/v1/completions": "/completions",
    "/v1/chat/completions": "/chat/completions",
    "/v1/responses": "/responses",
    "/v1/responses/input_tokens": "/responses/input_tokens",
    "/v1/audio/transcriptions": "/audio/transcriptions",
    "/v1/audio/translations": "/audio/translations",
}
"""Where OpenAI's are found, too: not every client's address ends with the version."""


@dataclass(frozen=True, slots=True)
class Routes:
    """What is served, by methods and paths.

    Args:
        endpoints: ask a model: by POST, and by WebSocket.
    """

    gets: dict[str, Handler]
    posts: dict[str, Handler]
    deletes: dict[str, Handler]
    endpoints: dict[str, ASGIApp]


def make_app(
    service: Service,
    embeddings: Embeddings | None = None,
    rerank: Rerank | None = None,
    audio: Audio | None = None,
    worker: Worker | None = None,
) -> Starlette:
    """All of `routes_of`; `Guard` stands before it."""
    routes = routes_of(service, embeddings, rerank, audio, worker)
    return application(routes.gets, routes.posts, routes.deletes, routes.endpoints, service.book)


def routes_of(
    service: Service,
    embeddings: Embeddings | None = None,
    rerank: Rerank | None = None,
    audio: Audio | None = None,
    worker: Worker | None = None,
) -> Routes:
    """Everything that is served.

    Args:
        embeddings: makes vectors of texts; None: nothing does.
        rerank: sorts texts; None: nothing does.
        audio: writes what is said; None: nothing does.
        worker: has files and batches; None: there are none.
    """
    plain, about, served = Plain(service), About(service), service.served
    embeddings = embeddings or Embeddings(None, strict=served.strict, any_name=served.any_name)
    rerank = rerank or Rerank(None, strict=served.strict, any_name=served.any_name)
    audio = audio or Audio(None, strict=served.strict, any_name=served.any_name)
    files, batches = FilesApi(worker), BatchesApi(worker, strict=served.strict)
    adapters = Adapters(service.runtime.runtime, served, service.config)
    steering = Steering(service.desk)
    profile = Profile(service.config, lambda: dict.fromkeys(served.names, service.runtime.runtime))
    beside: dict[str, Asked] = {
        "/v1/embeddings": embeddings,
        "/rerank": rerank,
        "/v1/rerank": rerank,
        "/v2/rerank": rerank,
    }
    gets: dict[str, Handler] = {
        **{path: page.handler(path) for path in page.FILES},
        "/status": Status(service, worker).status,
        "/usage": Usage(service.accounts, service.config.usage).usage,
        **steering.gets,
        "/livez": plain.live,
        "/readyz": plain.ready,
        "/health": plain.ready,
        "/v2/health/live": plain.live,
        "/v2/health/ready": plain.ready,
        "/v2/models/{name:path}/ready": plain.model_ready,
        "/metrics": plain.metrics,
        "/version": plain.version,
        "/v1/models": plain.models,
        "/v1/models/{name:path}": plain.model,
        "/api/version": about.version,
        "/api/tags": about.tags,
        "/api/ps": about.ps,
        "/v1/files": files.list,
        "/v1/files/{id}": files.retrieve,
        "/v1/files/{id}/content": files.content,
        "/v1/batches": batches.list,
        "/v1/batches/{id}": batches.retrieve,
        "/v1/batches/{id}/failed": batches.failed,
    }
    posts: dict[str, Handler] = {
        **steering.posts,
        "/api/show": about.show,
        "/tokenize": plain.tokenize,
        "/detokenize": plain.detokenize,
        "/v1/load_lora_adapter": adapters.load,
        "/v1/unload_lora_adapter": adapters.unload,
        **{path: metered(service.accounts, path, asked) for path, asked in beside.items()},
        **audio.handlers(service.accounts),
        "/moves": service.desk.moves.begin,
        "/profile": profile.record,
        "/v1/messages/count_tokens": plain.count_tokens,
        "/v1/responses/input_tokens": plain.input_tokens,
        "/v1/files": files.create,
        "/v1/batches": batches.create,
        "/v1/batches/{id}/cancel": batches.cancel,
        "/v1/batches/{id}/retry": batches.retry,
    }
    deletes: dict[str, Handler] = {
        **steering.deletes,
        "/answers": Forgetting(service.desk, lambda: [service]).forget,
        "/profile": profile.end,
        "/v1/files/{id}": files.delete,
        "/v1/batches/{id}": batches.delete,
    }
    apis: dict[str, Api] = {
        "/v1/completions": Completions(served),
        "/v1/chat/completions": ChatCompletions(served),
        "/v1/messages": MessagesApi(served),
        "/v1/responses": Responses(served),
    }
    in_lines: dict[str, Api] = {
        "/api/chat": ChatAnswers(served),
        "/api/generate": GenerateAnswers(served),
    }
    prompts = Prompts(service)
    posts |= {f"/tokens{path}": prompts.of(api) for path, api in {**apis, **in_lines}.items()}
    endpoints: dict[str, ASGIApp] = {
        **{path: Endpoint(service, path, api) for path, api in apis.items()},
        **{path: Endpoint(service, path, api, LINES) for path, api in in_lines.items()},
    }
    return Routes(gets, posts, deletes, endpoints)


def application(
    gets: Mapping[str, Handler],
    posts: Mapping[str, Handler],
    deletes: Mapping[str, Handler],
    endpoints: Mapping[str, ASGIApp],
    book: Book,
) -> Starlette:
    """Routes, by their methods and paths.

    Args:
        endpoints: ask a model: by POST, and by WebSocket.
        book: of requests.
    """
    routes = [
        *(Route(path, handler, methods=["GET"]) for path, handler in _paths(gets)),
        *(Route(path, handler, methods=["POST"]) for path, handler in _paths(posts)),
        *(Route(path, handler, methods=["DELETE"]) for path, handler in deletes.items()),
        *(Route(path, endpoint, methods=["POST"]) for path, endpoint in _paths(endpoints)),
        *(WebSocketRoute(path, Socket(endpoint, book)) for path, endpoint in _paths(endpoints)),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={HTTPException: _refuse_http, **dict.fromkeys(ERRORS, refuse)},
    )
    app.router.redirect_slashes = False
    return app


def _paths(routes: Mapping[str, Answering]) -> Iterator[tuple[str, Answering]]:
    """Each with what answers there."""
    for path, answers in routes.items():
        yield path, answers
        if path in BARE and BARE[path] not in routes:
            yield BARE[path], answers


async def _refuse_http(request: Request, error: Exception) -> Response:
    """No such route, or not by this method."""
    assert isinstance(error, HTTPException), "it is registered for these"
    headers = dict(error.headers or {})
    phrase = HTTPStatus(error.status_code).phrase.lower()
    return await refuse(request, Refusal(error.status_code, phrase, headers=headers))
