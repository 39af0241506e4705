"""``/status``: how the server does right now, for its page: requests, memory, model."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

import kvrt
from kvrt.engine.queue import Queued
from kvrt.kv.picture import GroupPicture, Owned
from kvrt.server.access.gate import Gate
from kvrt.server.access.keys import Owner
from kvrt.server.batches.answering import BEHIND
from kvrt.server.batches.worker import Worker
from kvrt.server.entry import Book, Entry, entry_of
from kvrt.server.service import Service
from kvrt.server.telemetry.metrics import usage
from kvrt.server.wire.answers import answer

ENDINGS = {200: "answered", 499: "left"}

QUEUE = 100
"""Requests that wait, at most, that are told of: the first."""

OWNERS = 6
OTHERS = "(others)"
"""Workspaces whose pages are told apart, and how all others are called; no workspace can be."""

CELLS = 512
"""Parts, at most, that the memory of a group is drawn in."""


class Status:
    """The route.

    Args:
        service: that it is about.
        worker: has files and batches; None: there are none.
        begun: when the server was, by `time.time`; None: now.
    """

    def __init__(
        self, service: Service, worker: Worker | None = None, begun: float | None = None
    ) -> None:
        self._service = service
        self._worker = worker
        self._begun = begun or time.time()

    async def status(self, request: Request) -> Response:
        """A key of role user sees its own requests, an admin in a workspace that one's, others
        all."""
        asking = entry_of(request.scope).owner
        assert asking is not None, "nobody else gets here"
        return answer(self.told(asking))

    def told(self, asking: Owner) -> dict[str, Any]:
        """All of it, for somebody."""
        return {
            "server": self._server(),
            "model": self._model(),
            **requests_of(self._service.book, asking),
            "queue": [
                _waiting(each)
                for each in self._service.runtime.runtime.queue(QUEUE)
                if asking.rules or each.metadata == asking.tenant
            ],
            "batches": None if self._worker is None else asdict(self._worker.load),
            "memory": self._memory(asking),
        }

    def _server(self) -> dict[str, Any]:
        gate = self._service.gate
        state = "stopped" if not self._service.lives else "ready"
        if state == "ready" and not self._service.moves:
            state = "standing still"
        return server_of(gate, state, self._begun, *self._service.metrics.sequences)

    def _model(self) -> dict[str, Any]:
        served = self._service.served
        model, info = served.model, self._service.runtime.runtime.device_info
        return {
            "names": served.names,
            "architecture": model.spec.architecture,
            "dtype": str(model.dtype),
            "weight_bytes": model.weight_bytes,
            "context": model.max_model_len,
            "layers": len(model.spec.layers),
            "device": info.name,
            "backend": info.backend,
            "chats": model.tokenizer is not None and model.tokenizer.chat is not None,
        }

    def _memory(self, asking: Owner) -> dict[str, Any]:
        runtime = self._service.runtime.runtime
        stats = runtime.stats()
        offload = stats.offload
        tiers = [] if offload is None else [
            _tier("host memory", offload.host.pages, offload.host.used_bytes,
                  offload.host.budget_bytes),
            *(_tier("disk", disk.pages, disk.used_bytes, None) for disk in offload.disks),
        ]  # fmt: skip
        return {
            **asdict(stats.cache),
            "usage": usage(stats),
            "groups": [_group(each, asking) for each in runtime.picture(CELLS, owner=str)],
            "tiers": tiers,
        }


def requests_of(book: Book, asking: Owner) -> dict[str, Any]:
    """Requests that go on, and the last that have ended, as far as somebody may see them."""

    def seen(entries: Iterable[Entry]) -> list[dict[str, Any]]:
        own = [entry for entry in entries if _is_for(entry.owner, asking)]
        return [_told(entry) for entry in own if entry.answers is not None]

    return {"requests": seen(book.open), "recent": seen(reversed(book.recent))}


def server_of(gate: Gate, state: str, begun: float, running: int, waiting: int) -> dict[str, Any]:
    """The server as a whole.

    Args:
        state: of its engine.
        begun: by `time.time`.
        running, waiting: sequences.
    """
    return {
        "version": kvrt.__version__,
        "state": "shutting down" if gate.closing else state,
        "seconds": time.time() - begun,
        "places": gate.most,
        "taken": gate.inside,
        "running": running,
        "waiting": waiting,
        "tasks": len(asyncio.all_tasks()),
    }


def _is_for(owner: Owner | None, asking: Owner) -> bool:
    """Whether somebody may see what another has asked: he is the same, whatever the file of keys
    says of him by now, or an admin of his."""
    if owner is None:
        return asking.rules
    same = (owner.name, owner.tenant) == (asking.name, asking.tenant)
    return same or asking.sees(owner.tenant)


def _group(group: GroupPicture, asking: Owner) -> dict[str, Any]:
    """A key of role user sees which pages are its workspace's; of many workspaces, the smaller ones
    are told of together."""
    named: dict[str, list[Owned]] = {}
    for number, each in enumerate(group.owners):
        seen = each.owner == asking.tenant or (asking.rules and number < OWNERS)
        named.setdefault(each.owner if seen else OTHERS, []).append(each)
    owners = [
        {
            "owner": name,
            "used": sum(each.used for each in own),
            "cells": [sum(cell) for cell in zip(*(each.cells for each in own), strict=True)],
        }
        for name, own in named.items()
    ]
    return {**asdict(replace(group, owners=())), "owners": owners}


def _tier(name: str, pages: int, used: int, limit: int | None) -> dict[str, Any]:
    return {"name": name, "pages": pages, "used_bytes": used, "limit_bytes": limit}


def _waiting(queued: Queued) -> dict[str, Any]:
    return {
        "id": queued.request_id,
        "key": queued.metadata,
        "batch": queued.priority == BEHIND,
        "priority": queued.priority,
        "prompt_tokens": queued.prompt_tokens,
        "generated_tokens": queued.generated_tokens,
        "seconds": queued.seconds,
        "preemptions": queued.preemptions,
        "why": queued.why,
    }


def _told(entry: Entry) -> dict[str, Any]:
    """One request: what of it is for people to see, and never what was said."""
    progress = entry.progress
    assert progress is not None, "it asked the model"
    first = None if progress.first is None else progress.first - entry.begun
    rate = None
    if first is not None and progress.generated_tokens > 1 and entry.seconds > first:
        rate = (progress.generated_tokens - 1) / (entry.seconds - first)
    return {
        "id": entry.id,
        "route": entry.route,
        "key": entry.owner.name if entry.owner else "",
        "state": "runs" if entry.ended is None else ENDINGS.get(entry.status, str(entry.status)),
        "seconds": entry.seconds,
        "prompt_tokens": progress.prompt_tokens,
        "generated_tokens": progress.generated_tokens,
        "first_token_seconds": first,
        "tokens_per_second": rate,
    }
