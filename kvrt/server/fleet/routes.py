"""What clients, operators and Ollama's clients see and say of several models."""

import asyncio
import platform
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import msgspec
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

import kvrt
from kvrt.server.access.admin import needs_admin
from kvrt.server.entry import entry_of
from kvrt.server.errors import Refusal
from kvrt.server.fleet.members import Member, Rest
from kvrt.server.fleet.models import Models
from kvrt.server.ollama.about import About
from kvrt.server.telemetry.status import Status, requests_of, server_of
from kvrt.server.wire.answers import answer
from kvrt.server.wire.http import COMMENT, EVENTS, SILENCE_S, event, read_body
from kvrt.server.words.fields import Name, decode

MAX_BODY = 64 << 10
NEVER = datetime.max.replace(tzinfo=UTC)


class NamedModel(msgspec.Struct):
    """What an operator says of a model; `name` is another word for `model`."""

    model: Name | None = None
    name: Name | None = None


class ModelRoutes:
    """The routes.

    Args:
        models: that they are about.
    """

    def __init__(self, models: Models) -> None:
        self._models = models
        self._begun = time.time()

    # --- what there is -----------------------------------------------------------------------

    async def list(self, request: Request) -> Response:
        """In the words of OpenAI's clients and of Anthropic's, with what has become of each."""
        await self._models.look()
        data = [self._entry(member) for member in self._models.fleet.members.values()]
        pages = {"has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]}
        return answer({"object": "list", "data": data, **pages})

    async def one(self, request: Request) -> Response:
        name = await self._models.named(request.path_params["name"])
        return answer(self._entry(self._models.fleet.members[name]))

    def _entry(self, member: Member) -> dict[str, Any]:
        loaded = self._models.loaded.get(member.name)
        made = self._models.created
        longest = {} if loaded is None else {
            "max_model_len": loaded.service.served.model.max_model_len
        }  # fmt: skip
        return {
            "id": member.name,
            "object": "model",
            "created": made,
            "owned_by": "kvrt",
            **longest,
            "type": "model",
            "display_name": member.name,
            "lifecycle": "active",
            "created_at": datetime.fromtimestamp(made, UTC).isoformat(),
            "parent": None,
            "status": self._models.status(member.name),
        }

    async def tags(self, request: Request) -> Response:
        """All of them, as Ollama's clients ask."""
        await self._models.look()
        made = datetime.fromtimestamp(self._models.created, UTC).isoformat()
        found = [
            {**self._told(member), "modified_at": made}
            for member in self._models.fleet.members.values()
        ]
        return answer({"models": found})

    async def ps(self, request: Request) -> Response:
        """Those that are loaded, likewise."""
        found = []
        for member in self._models.fleet.members.values():
            loaded = self._models.loaded.get(member.name)
            if member.state != "loaded" or loaded is None:
                continue
            about = About(loaded.service)
            ends = self._models.expires(member.name)
            told = NEVER if ends is None else datetime.fromtimestamp(ends, UTC)
            found.append({**self._told(member), **about.held(), "expires_at": told.isoformat()})
        return answer({"models": found})

    def _told(self, member: Member) -> dict[str, Any]:
        loaded = self._models.loaded.get(member.name)
        if loaded is not None:
            return {**About(loaded.service).entry(member.name)}
        details = {"parent_model": "", "format": "", "family": "", "families": [],
                   "parameter_size": "", "quantization_level": ""}  # fmt: skip
        name = member.name
        return {"name": name, "model": name, "size": member.need, "digest": "", "details": details}

    # --- what operators say ------------------------------------------------------------------

    async def load(self, request: Request) -> Response:
        return await self._ordered(request, None)

    async def sleep(self, request: Request) -> Response:
        return await self._ordered(request, "sleeping")

    async def unload(self, request: Request) -> Response:
        return await self._ordered(request, "unloaded")

    async def _ordered(self, request: Request, where: Rest | None) -> Response:
        """It is begun; who wants to know when it is done looks at the events."""
        needs_admin(request.scope, self._models.desk.config, "models are loaded and unloaded")
        body = await read_body(request.scope, request.receive, MAX_BODY)
        asked = decode(body, NamedModel, strict=self._models.desk.config.strict)
        if (wanted := asked.model or asked.name) is None:
            raise Refusal(400, "model: Object missing required field `model`", param="model")
        name = await self._models.named(wanted)
        if where is None:
            self._models.load(name)
        else:
            self._models.rest(name, where)
        member = self._models.fleet.members[name]
        return answer({"success": True, "model": self._entry(member)})

    async def events(self, request: Request) -> Response:
        """Where each model stands, and from then on each change, until the client leaves."""
        return StreamingResponse(
            self._changes(), media_type=EVENTS.decode(), headers={"cache-control": "no-cache"}
        )

    async def _changes(self) -> AsyncIterator[bytes]:
        with self._models.watched() as watcher:
            watcher.changed.update(dict.fromkeys(self._models.fleet.members))
            while not self._models.desk.gate.closing:
                names = list(watcher.changed)
                watcher.changed.clear()
                watcher.woken.clear()
                for name in names:
                    yield event({"model": name, "status": self._models.status(name)}, "model")
                try:
                    async with asyncio.timeout(SILENCE_S):
                        await watcher.woken.wait()
                except TimeoutError:
                    yield COMMENT

    # --- how the server does -----------------------------------------------------------------

    async def live(self, request: Request) -> Response:
        """An engine that has stopped is replaced when its model is asked for next."""
        return answer({"status": "ok", "live": True})

    async def ready(self, request: Request) -> Response:
        """Requests will be answered: the server does not end, and engines that work go on."""
        if self._models.desk.gate.closing:
            return answer({"status": "shutting down"}, HTTPStatus.SERVICE_UNAVAILABLE)
        still = [
            name
            for name, loaded in self._models.loaded.items()
            if loaded.service.lives and not loaded.service.moves
        ]
        if still:
            told = {"status": "an engine stands still", "models": still}
            return answer(told, HTTPStatus.SERVICE_UNAVAILABLE)
        return answer({"status": "ok", "ready": True})

    async def model_ready(self, request: Request) -> Response:
        """As the Open Inference Protocol asks: the model answers, once it is loaded if need be."""
        name = await self._models.named(request.path_params["name"])
        ready = await self.ready(request)
        holds = ready.status_code == HTTPStatus.OK
        return answer({"name": name, "ready": holds}, ready.status_code)

    async def version(self, request: Request) -> Response:
        return answer({"version": kvrt.__version__, "python": platform.python_version()})

    async def status(self, request: Request) -> Response:
        """Of the server, and of one model: ``?model=NAME``, else the first that is loaded."""
        asking = entry_of(request.scope).owner
        assert asking is not None, "nobody else gets here"
        wanted = request.query_params.get("model")
        states = {name: self._models.status(name) for name in self._models.fleet.members}
        if wanted is not None:
            wanted = await self._models.named(wanted)
        else:
            ready = [name for name, told in states.items() if told["value"] == "loaded"]
            wanted = next(iter(ready), None)
        loaded = None if wanted is None else self._models.loaded.get(wanted)
        if loaded is not None:
            told = Status(loaded.service, begun=self._begun).told(asking)
        else:
            desk = self._models.desk
            waiting = sum(told["waiting"] for told in states.values())
            told = {
                "server": server_of(desk.gate, "ready", self._begun, 0, waiting),
                "model": None,
                **requests_of(desk.book, asking),
                "queue": [],
                "batches": None,
                "memory": None,
            }
        listed = [{"name": name, **state} for name, state in states.items()]
        return answer({**told, "models": listed})

    async def metrics(self, request: Request) -> Response:
        """Of all models that have an engine, each with its name as a label."""
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(generate_latest(_Families(self._models)), media_type=kind)


class _Families:
    """What is collected at a scrape."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        yield from _labelled(
            (name, loaded.service.metrics.collect()) for name, loaded in self._models.loaded.items()
        )
        members = self._models.fleet.members.values()
        states = GaugeMetricFamily("kvrt_model_state", "1: it is so.", labels=["model", "state"])
        waiting = GaugeMetricFamily(
            "kvrt_model_waiting_requests", "That wait for a model to be loaded.", labels=["model"]
        )
        seconds = GaugeMetricFamily(
            "kvrt_model_load_seconds", "That its last load took.", labels=["model"]
        )
        for member in members:
            states.add_metric([member.name, member.state], 1)
            waiting.add_metric([member.name], len(member.waiting))
            if member.load_s is not None:
                seconds.add_metric([member.name], member.load_s)
        loads = CounterMetricFamily(
            "kvrt_model_loads", "Loads and wakings that have ended, by how.", labels=["outcome"]
        )
        for outcome, number in self._models.loads.items():
            loads.add_metric([outcome], number)
        yield from (states, waiting, seconds, loads)


def _labelled(collected: Iterable[tuple[str, Iterable[Metric]]]) -> Iterator[Metric]:
    """Families of several models as one each: what they say of each other is told by a label."""
    found: dict[str, Metric] = {}
    for name, families in collected:
        for family in families:
            kept = found.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            label: Mapping[str, str] = {"model": name}
            kept.samples += [s._replace(labels={**s.labels, **label}) for s in family.samples]
    yield from found.values()
