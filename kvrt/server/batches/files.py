"""``/v1/files``: what clients send, and what batches make. Each workspace has its own."""

import asyncio
import contextlib
import os
import re
import secrets
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any, BinaryIO

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from kvrt.batches.words import File
from kvrt.batches.work import sync_folder
from kvrt.server.batches.worker import Worker
from kvrt.server.entry import entry_of
from kvrt.server.errors import Refusal
from kvrt.server.wire.answers import answer
from kvrt.server.wire.form import Form
from kvrt.server.wire.http import READ_S, headers_of, pieces_of

PURPOSES = ("batch", "assistants", "fine-tune", "vision", "user_data", "evals", "batch_output")
"""As OpenAI's; only ``batch`` is of use here."""

MAX_LIST = 10_000
MAX_NAME = 255
WRITE_AT_ONCE = 1 << 20
LONGEST_S, SHORTEST_S = 30 * 86_400, 3600
"""Of ``expires_after``, as OpenAI's."""


def file_id() -> str:
    return f"file-{secrets.token_hex(12)}"


class FilesApi:
    """The routes.

    Args:
        worker: has the files; None: there are none.
    """

    def __init__(self, worker: Worker | None) -> None:
        self._worker = worker

    async def create(self, request: Request) -> Response:
        worker, owner = there(self._worker), owner_of(request)
        store = worker.store
        room = worker.space - await store.do(store.files.used, owner)
        limit = min(worker.max_file, room)
        declared = headers_of(request.scope, b"content-length")
        if declared and declared[0].isdigit() and int(declared[0][:20]) > limit + WRITE_AT_ONCE:
            raise _too_large(limit, worker.max_file)
        id = file_id()
        path = store.files.path(id)
        kind = "".join(headers_of(request.scope, b"content-type")[-1:])
        try:
            with path.open("wb") as file:
                sink = _Sink(file, limit, worker.max_file)
                form = Form(kind, sink.write)
                await form.read(_timed(pieces_of(request.receive)))
                await sink.end()
            if form.file is None:
                raise Refusal(400, "file is missing", param="file")
            purpose = form.fields.get("purpose", "")
            if purpose not in PURPOSES[:-1]:
                allowed = ", ".join(PURPOSES[:-1])
                raise Refusal(400, f"purpose is none of {allowed}", param="purpose")
            sync_folder(path.parent)
            listed = await store.do(
                store.files.add, id, owner, purpose, _plain(form.file), sink.size, _expiry(form)
            )
        except OSError as error:
            path.unlink(missing_ok=True)
            if isinstance(error, ConnectionError):
                raise
            raise Refusal(
                HTTPStatus.INSUFFICIENT_STORAGE, "the file cannot be kept now", code="no_space"
            ) from None
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return answer(shown(listed))

    async def list(self, request: Request) -> Response:
        store, query = there(self._worker).store, request.query_params
        purpose = query.get("purpose")
        limit = number(query.get("limit"), MAX_LIST, MAX_LIST)
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise Refusal(400, "order is asc or desc", param="order")
        found = await store.do(
            store.files.page,
            owner_of(request), purpose, query.get("after"), limit + 1, ascending=order == "asc",
        )  # fmt: skip
        return answer(listed([shown(each) for each in found], limit))

    async def retrieve(self, request: Request) -> Response:
        return answer(shown(await self._file(request)))

    async def content(self, request: Request) -> Response:
        file = await self._file(request)
        path = there(self._worker).store.files.path(file.id)
        return FileResponse(path, media_type="application/octet-stream")

    async def delete(self, request: Request) -> Response:
        file, store = await self._file(request), there(self._worker).store
        if await store.do(store.batches.uses, file.id):
            raise Refusal(
                HTTPStatus.CONFLICT, "a batch that goes on needs this file", code="in_use"
            )
        await store.do(store.files.delete, file.id)
        return answer({"id": file.id, "object": "file", "deleted": True})

    async def _file(self, request: Request) -> File:
        store = there(self._worker).store
        id = request.path_params["id"]
        found = await store.do(store.files.get, id, owner_of(request))
        if found is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "no such file", param="id")
        return found


class _Sink:
    """Writes a file in large pieces, on a thread.

    Args:
        limit: bytes that it may have.
        most: that any file may have.
    """

    def __init__(self, file: BinaryIO, limit: int, most: int) -> None:
        self._file = file
        self._limit = limit
        self._most = most
        self._data = bytearray()
        self.size = 0

    async def write(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self._limit:
            raise _too_large(self._limit, self._most)
        self._data += data
        if len(self._data) >= WRITE_AT_ONCE:
            await self._flush()

    async def end(self) -> None:
        await self._flush()
        self._file.flush()
        await asyncio.to_thread(os.fsync, self._file.fileno())

    async def _flush(self) -> None:
        data, self._data = self._data, bytearray()
        await asyncio.to_thread(self._file.write, data)


async def _timed(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Each piece has its time to come."""
    with contextlib.suppress(StopAsyncIteration):
        while True:
            try:
                async with asyncio.timeout(READ_S):
                    piece = await anext(pieces)
            except TimeoutError:
                raise Refusal(HTTPStatus.REQUEST_TIMEOUT, "the file did not come") from None
            yield piece


def _expiry(form: Form) -> int | None:
    """What ``expires_after`` says, as forms have it."""
    given = form.fields.get("expires_after[seconds]")
    if given is None:
        return None
    if form.fields.get("expires_after[anchor]", "created_at") != "created_at":
        raise Refusal(400, "expires_after[anchor] is created_at", param="expires_after")
    if not given.isascii() or not given.isdigit():
        raise Refusal(400, "expires_after[seconds] is a number", param="expires_after")
    return expiry(int(given[:12]))


def expiry(seconds: int, field: str = "expires_after") -> int:
    """Checked: seconds after which a file is deleted."""
    if not SHORTEST_S <= seconds <= LONGEST_S:
        why = f"seconds is from {SHORTEST_S} to {LONGEST_S}"
        raise Refusal(400, f"{field}: {why}", param=field)
    return seconds


def _plain(name: str) -> str:
    """A file's name, for its owner to know it by: no path, and nothing that steers a terminal."""
    last = re.split(r"[/\\]", name)[-1]
    return "".join(each for each in last if each.isprintable())[:MAX_NAME] or "file"


def _too_large(limit: int, most: int) -> Refusal:
    if limit < most:
        why = (
            f"there is room for {max(0, limit)} bytes more of this workspace's files: delete others"
        )
    else:
        why = f"a file has {most} bytes, at most"
    return Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        why,
        param="file",
        code="file_too_large",
        headers={"connection": "close"},
    )


# --- what batches share ------------------------------------------------------------------------


def there(worker: Worker | None) -> Worker:
    """The worker, or a refusal."""
    if worker is None:
        raise Refusal(
            HTTPStatus.NOT_FOUND,
            "this server keeps no files and batches: it was started without --batches",
            code="not_offered",
        )
    return worker


def owner_of(request: Request) -> str:
    """The workspace of the key that a request brought."""
    owner = entry_of(request.scope).owner
    assert owner is not None, "nobody else gets here"
    return owner.tenant


def number(given: str | None, most: int, default: int, param: str = "limit") -> int:
    """A number in the query of a list."""
    if given is None:
        return default
    if not given.isascii() or not given.isdigit() or not 1 <= int(given[:10]) <= most:
        raise Refusal(400, f"{param} is a number from 1 to {most}", param=param)
    return int(given)


def listed(found: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """A page of a list, of which one more than that was looked for."""
    data = found[:limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(found) > limit,
    }


def shown(file: File) -> dict[str, Any]:
    """As clients read it."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.nbytes,
        "created_at": file.created,
        "expires_at": file.expires,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }
