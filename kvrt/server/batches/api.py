"""``/v1/batches``: as OpenAI's, with ``failed``, ``retry`` and ``DELETE`` besides."""

import re
from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from kvrt.batches.failures import failures
from kvrt.batches.pace import Standing
from kvrt.batches.words import Batch
from kvrt.server.batches.answering import URLS
from kvrt.server.batches.files import expiry, file_id, listed, number, owner_of, there
from kvrt.server.batches.worker import MOST_OPEN, Worker
from kvrt.server.errors import Refusal
from kvrt.server.wire.answers import answer
from kvrt.server.wire.http import read_body
from kvrt.server.words.fields import Name, decode

MAX_BODY = 64 << 10
MAX_LIST = 100
DEFAULT_LIST = 20
MOST_LINES = 10**8
UNITS = {"m": 60, "h": 3600, "d": 86_400}
WINDOW = re.compile(r"([1-9][0-9]{0,3})([mhd])", re.ASCII)

Key = Annotated[str, Meta(max_length=64)]
Value = Annotated[str, Meta(max_length=512)]
REACHED = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


class ExpiresAfter(msgspec.Struct):
    """When files are deleted."""

    anchor: Literal["created_at"]
    seconds: int


class BatchRequest(msgspec.Struct, kw_only=True):
    """The fields of a request."""

    input_file_id: Name
    endpoint: Annotated[str, Meta(max_length=128)]
    completion_window: Annotated[str, Meta(max_length=16)]
    metadata: Annotated[dict[Key, Value], Meta(max_length=16)] | None = None
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0
    output_expires_after: ExpiresAfter | None = None


class BatchesApi:
    """The routes.

    Args:
        worker: has the batches; None: there are none.
        strict: fields that are not known are refused.
    """

    def __init__(self, worker: Worker | None, *, strict: bool) -> None:
        self._worker = worker
        self._strict = strict

    async def create(self, request: Request) -> Response:
        worker, owner = there(self._worker), owner_of(request)
        body = await read_body(request.scope, request.receive, MAX_BODY)
        asked = decode(body, BatchRequest, strict=self._strict)
        if asked.endpoint not in URLS:
            raise Refusal(400, f"endpoint is none of {', '.join(URLS)}", param="endpoint")
        seconds = _seconds(asked.completion_window)
        after = asked.output_expires_after
        seconds_after = None if after is None else expiry(after.seconds, "output_expires_after")
        store = worker.store
        file = await store.do(store.files.get, asked.input_file_id, owner)
        if file is None:
            raise Refusal(400, "input_file_id: no such file", param="input_file_id")
        if file.purpose != "batch":
            raise Refusal(400, "input_file_id: its purpose is not batch", param="input_file_id")
        await self._check_room(worker, owner)
        batch = await store.do(
            store.batches.create,
            owner,
            asked.endpoint,
            file.id,
            (file_id(), file_id()),
            window=asked.completion_window,
            seconds=seconds,
            metadata=asked.metadata,
            files_expire=seconds_after,
            priority=asked.priority,
        )
        worker.add(batch)
        return answer(self._shown(batch))

    async def list(self, request: Request) -> Response:
        store, query = there(self._worker).store, request.query_params
        limit = number(query.get("limit"), MAX_LIST, DEFAULT_LIST)
        after = query.get("after")
        found = await store.do(store.batches.page, owner_of(request), after, limit + 1)
        return answer(listed([self._shown(each) for each in found], limit))

    async def retrieve(self, request: Request) -> Response:
        return answer(self._shown(await self._batch(request)))

    async def cancel(self, request: Request) -> Response:
        batch = await self._batch(request)
        if batch.over or batch.status == "finalizing":
            raise Refusal(
                HTTPStatus.CONFLICT, f"the batch is {batch.status}", code="batch_not_cancellable"
            )
        return answer(self._shown(await there(self._worker).cancel(batch)))

    async def failed(self, request: Request) -> Response:
        """Lines that have no good answer, and why, while it goes on and when it is over."""
        batch, store = await self._batch(request), there(self._worker).store
        query = request.query_params
        limit = number(query.get("limit"), MAX_LIST, DEFAULT_LIST)
        after = number(query.get("after"), MOST_LINES, 0, param="after")
        path = store.files.path(batch.input)
        found = await store.do(failures, store.work, batch, path, after, limit + 1)
        data = [asdict(each) for each in found[:limit]]
        return answer({"object": "list", "data": data, "has_more": len(found) > limit})

    async def retry(self, request: Request) -> Response:
        """Ask again what has no good answer, within the same time as before."""
        batch, worker = await self._batch(request), there(self._worker)
        store = worker.store
        broken = batch.status == "failed" and batch.total
        if not batch.over or not (batch.left or batch.failed or broken):
            raise Refusal(HTTPStatus.CONFLICT, "no line is to be asked again", code="nothing_to_do")
        if await store.do(store.files.get, batch.input, batch.owner) is None:
            raise Refusal(HTTPStatus.CONFLICT, "the input is deleted", code="input_missing")
        await self._check_room(worker, batch.owner)
        await store.do(store.batches.reopen, batch, _seconds(batch.window))
        batch = await self._batch(request)
        worker.add(batch)
        return answer(self._shown(batch))

    async def delete(self, request: Request) -> Response:
        """Forget it; its files stay, until they are deleted."""
        batch, store = await self._batch(request), there(self._worker).store
        if not batch.over:
            raise Refusal(HTTPStatus.CONFLICT, "the batch goes on: cancel it first", code="in_use")
        await store.do(store.batches.remove, batch)
        await store.do(store.work.drop_journal, batch)
        return answer({"id": batch.id, "object": "batch", "deleted": True})

    def _shown(self, batch: Batch) -> dict[str, Any]:
        return shown(batch, there(self._worker).standing(batch))

    async def _check_room(self, worker: Worker, owner: str) -> None:
        if await worker.store.do(worker.store.batches.open_count, owner) >= MOST_OPEN:
            raise Refusal(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{MOST_OPEN} batches of this workspace are not over",
                code="rate_limit_exceeded",
                headers={"retry-after": "60"},
            )

    async def _batch(self, request: Request) -> Batch:
        store = there(self._worker).store
        found = await store.do(store.batches.get, request.path_params["id"], owner_of(request))
        if found is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "no such batch", param="id")
        return found


def _seconds(window: str) -> int:
    match = WINDOW.fullmatch(window)
    if match is None:
        why = "is a number of minutes, hours or days, such as 24h"
        raise Refusal(400, f"completion_window {why}", param="completion_window")
    return int(match[1]) * UNITS[match[2]]


def shown(batch: Batch, standing: Standing | None = None) -> dict[str, Any]:
    """As clients read it.

    Args:
        standing: how it goes on; None: it does not, or has not begun.
    """
    tokens, problems = batch.tokens, [asdict(each) for each in batch.problems]
    ended = batch.over and batch.status != "failed"
    unanswered = batch.total - batch.done
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": problems} if problems else None,
        "input_file_id": batch.input,
        "completion_window": batch.window,
        "status": batch.status,
        "output_file_id": batch.output if ended and batch.done else None,
        "error_file_id": batch.errors if ended and unanswered else None,
        "created_at": batch.created,
        "expires_at": batch.expires,
        **{f"{status}_at": batch.times.get(status) for status in REACHED},
        "request_counts": {"total": batch.total, "completed": batch.done, "failed": batch.failed},
        "metadata": batch.metadata,
        "priority": batch.priority,
        "usage": {
            "input_tokens": tokens.prompt,
            "input_tokens_details": {"cached_tokens": tokens.cached},
            "output_tokens": tokens.said,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tokens.prompt + tokens.said,
        },
        "progress": None if standing is None else asdict(standing),
    }
