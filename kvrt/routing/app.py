"""The routes of a router, as one ASGI application."""

import itertools
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kvrt.errors import ConfigError
from kvrt.routing.forwarding import Forward
from kvrt.routing.replicas import Address, Replica, Replicas
from kvrt.server.access.gate import Gate
from kvrt.server.entry import entry_of
from kvrt.server.errors import Refusal
from kvrt.server.wire.answers import answer, refuse
from kvrt.server.wire.http import read_body
from kvrt.server.words.fields import decode

ASKED = (
    "/v1/completions", "/completions", "/v1/chat/completions", "/chat/completions",
    "/v1/responses", "/responses", "/v1/responses/input_tokens", "/v1/messages",
    "/v1/messages/count_tokens", "/v1/embeddings", "/embeddings", "/v1/rerank", "/v2/rerank",
    "/rerank", "/api/chat", "/api/generate", "/api/show", "/tokenize", "/detokenize",
)  # fmt: skip
"""What is sent on to one of the servers: nothing that one of them keeps."""

LOOKED_AT = ("/v1/models", "/models", "/v1/models/{name:path}", "/api/tags", "/api/version")
MAX_ADDRESS = 1 << 16


class NewServer(msgspec.Struct):
    """A server that joins."""

    url: str
    events: str | None = None
    replay: str | None = None


class Router:
    """The routes that are its own.

    Args:
        replicas: that it is about.
        prefill: that compute prompts for these.
        gate: of requests.
    """

    def __init__(self, replicas: Replicas, prefill: Replicas, gate: Gate) -> None:
        self._replicas = replicas
        self._prefill = prefill
        self._gate = gate
        self._registry = CollectorRegistry()
        self._registry.register(Figures(replicas, prefill))

    async def live(self, request: Request) -> Response:
        return answer({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Requests will be answered: it does not end, and a server is ready."""
        if self._gate.closing:
            return answer({"status": "shutting down"}, HTTPStatus.SERVICE_UNAVAILABLE)
        if not self._replicas.candidates():
            return answer({"status": "no server is ready"}, HTTPStatus.SERVICE_UNAVAILABLE)
        return answer({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(generate_latest(self._registry), media_type=kind)

    async def list(self, request: Request) -> Response:
        found = (*self._replicas, *self._prefill)
        return answer({"object": "list", "data": [told(each) for each in found]})

    async def add(self, request: Request) -> Response:
        _check_role(request)
        asked = decode(
            await read_body(request.scope, request.receive, MAX_ADDRESS), NewServer, strict=True
        )
        given = [asked.url, asked.events, asked.replay]
        try:
            address = Address.read(",".join(each for each in given if each is not None))
            return answer(told(self._replicas.add(address)), HTTPStatus.CREATED)
        except ConfigError as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, str(error), param="url") from None

    async def drain(self, request: Request) -> Response:
        """It is asked for nothing more, and gone once it has answered."""
        _check_role(request)
        for replicas in (self._replicas, self._prefill):
            if (replica := replicas.get(request.path_params["id"])) is not None:
                replicas.drain(replica)
                return answer(told(replica), HTTPStatus.ACCEPTED)
        raise Refusal(HTTPStatus.NOT_FOUND, "no such server", code="no_server")


def _check_role(request: Request) -> None:
    owner = entry_of(request.scope).owner
    if owner is None or not owner.rules:
        raise Refusal(HTTPStatus.FORBIDDEN, "this needs a key of role admin, in no workspace")


def told(replica: Replica) -> dict[str, Any]:
    """A server, as people and programs see it."""
    return {
        "id": replica.id,
        "object": "replica",
        "url": replica.address.url,
        "events": replica.address.events,
        "state": replica.state,
        "reason": replica.reason,
        "running": replica.running,
        "waiting_tokens": replica.waiting,
        "requests": replica.turns,
        "failed": replica.failed,
        "prompt_tokens": replica.prompt_tokens,
        "cached_tokens": replica.cached_tokens,
        "cached_pages": replica.prefixes.pages,
        "seconds_per_token": replica.pace,
    }


Facts = dict[str, tuple[str, Callable[[Replica], float]]]


class Figures:
    """Prometheus' metrics of the servers, as they are when asked for."""

    def __init__(self, *replicas: Replicas) -> None:
        self._replicas = replicas

    def collect(self) -> list[Metric]:
        gauges: Facts = {
            "up": ("whether it may be asked", lambda each: float(each.taken)),
            "running": ("answers that it is giving", lambda each: each.running),
            "waiting_tokens": ("of prompts it has not begun to answer", lambda each: each.waiting),
            "cached_pages": ("that it has told of", lambda each: each.prefixes.pages),
        }
        counters: Facts = {
            "requests": ("that it was asked", lambda each: each.turns),
            "failures": ("it could not be asked, or broke off", lambda each: each.failed),
            "prompt_tokens": ("of prompts, where they are known", lambda each: each.prompt_tokens),
            "cached_tokens": ("of these, expected cached there", lambda each: each.cached_tokens),
        }
        return [
            *self._families(GaugeMetricFamily, gauges),
            *self._families(CounterMetricFamily, counters),
        ]

    def _families(
        self, kind: type[GaugeMetricFamily] | type[CounterMetricFamily], facts: "Facts"
    ) -> Iterator[Metric]:
        for name, (says, value) in facts.items():
            family = kind(f"kvrt_route_{name}", says, labels=["replica", "url"])
            for each in itertools.chain(*self._replicas):
                family.add_metric([each.id, each.address.url], value(each))
            yield family


def make_app(forward: Forward, replicas: Replicas, prefill: Replicas, gate: Gate) -> Starlette:
    """Everything that is served; `Guard` stands before it."""
    router = Router(replicas, prefill, gate)
    routes = [
        Route("/livez", router.live, methods=["GET"]),
        Route("/readyz", router.ready, methods=["GET"]),
        Route("/health", router.ready, methods=["GET"]),
        Route("/metrics", router.metrics, methods=["GET"]),
        Route("/replicas", router.list, methods=["GET"]),
        Route("/replicas", router.add, methods=["POST"]),
        Route("/replicas/{id}", router.drain, methods=["DELETE"]),
        *(Route(path, forward, methods=["POST"]) for path in ASKED),
        *(Route(path, forward, methods=["GET"]) for path in LOOKED_AT),
    ]
    app = Starlette(
        routes=routes, exception_handlers={HTTPException: _refuse_http, Refusal: refuse}
    )
    app.router.redirect_slashes = False
    return app


async def _refuse_http(request: Request, error: Exception) -> Response:
    """No such route, or not by this method."""
    assert isinstance(error, HTTPException), "it is registered for these"
    phrase = HTTPStatus(error.status_code).phrase.lower()
    says = f"{phrase}; what a single server keeps, such as files, is asked for there"
    headers = dict(error.headers or {})
    return await refuse(request, Refusal(error.status_code, says, headers=headers))
