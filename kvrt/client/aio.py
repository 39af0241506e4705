"""`AsyncClient`: as `kvrt.client.sync`, for an event loop."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from kvrt.client import calls, inputs, lines
from kvrt.client.calls import LOOK_S, TIMEOUT_S, URL, Call, headers_of, unreachable
from kvrt.client.inputs import Requests
from kvrt.client.standing import Status
from kvrt.client.words import Answer, Batch, Failure, Model, ModelEvent, Usage

T = TypeVar("T")


class AsyncClient:
    """A server, as one key sees it. Belongs to its event loop. What is left early is ended by
    `contextlib.aclosing`.

    Args:
        url: where the server is, without ``/v1``.
        key: as ``kvrt serve --new-key`` has made it; None: the server asks for none.
        timeout: seconds, at most, in which nothing comes.

    Raises:
        ServerError: of every method: the server refuses it, or cannot be reached.
    """

    def __init__(
        self, url: str = URL, key: str | None = None, *, timeout: float = TIMEOUT_S
    ) -> None:
        self._http = httpx.AsyncClient(base_url=url, headers=headers_of(key), timeout=timeout)
        self.batches = AsyncBatches(self)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def status(self) -> Status:
        """How the server does right now."""
        return await self.do(calls.status())

    async def models(self) -> list[Model]:
        """What requests may name."""
        return (await self.do(calls.models())).data

    async def load(self, model: str) -> Model:
        """Have a model loaded, in a server of several. It is begun when this returns."""
        return (await self.do(calls.order("load", model))).model

    async def wake(self, model: str) -> Model:
        """As `load`, of one that sleeps."""
        return (await self.do(calls.order("wake", model))).model

    async def sleep(self, model: str) -> Model:
        """Let it give its memory back, once its requests have ended."""
        return (await self.do(calls.order("sleep", model))).model

    async def unload(self, model: str) -> Model:
        """Likewise, and all else."""
        return (await self.do(calls.order("unload", model))).model

    async def events(self) -> AsyncGenerator[ModelEvent, None]:
        """Where each model stands, and from then on each change, until it is left."""
        async with aclosing(self.stream(calls.events())) as stream:
            async for line in stream:
                if (found := lines.moved(line)) is not None:
                    yield found

    async def usage(
        self,
        *,
        since: str | None = None,
        until: str | None = None,
        workspace: str | None = None,
    ) -> Usage:
        """What was taken, and what may be: of the key's own workspace, to an admin of all.

        Args:
            since, until: days of UTC, such as ``2026-11-01``; both count.
            workspace: None: all that the key may see.
        """
        return await self.do(calls.usage(since, until, workspace))

    async def profile(self, seconds: float = 5.0, *, model: str | None = None) -> dict[str, Any]:
        """What the engine does in the seconds to come, for admins: ``steps``, ``phases`` and so on,
        and the ``trace``, which Perfetto opens.

        Args:
            seconds: at most 60.
            model: which of those that are loaded; None: there is one.
        """
        return await self.do(calls.profile(seconds, model))

    async def end_profile(self) -> None:
        """Let the one that is being made come now."""
        await self.do(calls.end_profile())

    async def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        model: str | None = None,
        **fields: Any,
    ) -> AsyncGenerator[str, None]:
        """What the model says, piece by piece.

        Args:
            messages: as of chat completions, or what a user says.
            model: None: the first.
            fields: others of the request, such as ``temperature``.
        """
        name = (await self.models())[0].id if model is None else model
        async with aclosing(self.stream(calls.chat(name, messages, fields))) as stream:
            async for line in stream:
                piece = lines.said(line)
                if piece is None:
                    return
                if piece:
                    yield piece
        raise lines.cut()

    async def do(self, call: Call[T]) -> T:
        """Carry a call out."""
        try:
            response = await self._http.request(**call.options())
        except httpx.HTTPError as error:
            raise unreachable(error) from error
        return call.read(response.status_code, response.content, response.headers)

    async def stream(self, call: Call[None]) -> AsyncGenerator[str, None]:
        """Lines of what comes back."""
        async with self._streamed(call) as response:
            whole = lines.Lines()
            async for data in response.aiter_bytes():
                for line in whole.push(data):
                    yield line

    @asynccontextmanager
    async def _streamed(self, call: Call[None]) -> AsyncIterator[httpx.Response]:
        try:
            async with self._http.stream(**call.options()) as response:
                if response.status_code >= 300:
                    body = await response.aread()
                    raise calls.refused(response.status_code, body, response.headers)
                yield response
        except httpx.HTTPError as error:
            raise unreachable(error) from error


class AsyncBatches:
    """Batches of a client's key."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def start(
        self,
        requests: Requests,
        *,
        endpoint: str | None = None,
        window: str = "24h",
        metadata: Mapping[str, str] | None = None,
        priority: int = 0,
    ) -> Batch:
        """Send requests, and have them answered.

        Args:
            requests: a file's path, or objects; see `kvrt.client.inputs.Requests`.
            endpoint: what all of them ask; None: what the first one does.
            window: how long it may take.
            metadata: comes back with the batch.
            priority: of this workspace's batches, those of a higher one go on first.

        Raises:
            RequestError: the file cannot be read, or has no requests.
        """
        with inputs.opened(requests) as (name, file):
            route = inputs.endpoint(file) if endpoint is None else endpoint
            sent = await self._client.do(calls.upload(name, file))
        return await self._client.do(calls.create(sent.id, route, window, metadata, priority))

    async def get(self, id: str) -> Batch:
        """As it stands."""
        return await self._client.do(calls.batch(id))

    async def list(self) -> AsyncGenerator[Batch, None]:
        """All, the newest first."""
        after = None
        while True:
            page = await self._client.do(calls.batches(after))
            for each in page.data:
                yield each
            if not page.has_more:
                return
            after = page.last_id

    async def watch(self, id: str, every: float = LOOK_S) -> AsyncGenerator[Batch, None]:
        """A batch as it goes on, whenever something has changed, until it is over.

        Args:
            every: seconds between two looks.
        """
        last = None
        while True:
            batch = await self.get(id)
            if batch != last:
                yield batch
            if batch.over:
                return
            last = batch
            await asyncio.sleep(every)

    async def cancel(self, id: str) -> Batch:
        """Ask no more lines of it."""
        return await self._client.do(calls.cancel(id))

    async def retry(self, id: str) -> Batch:
        """Ask lines again that have no good answer."""
        return await self._client.do(calls.retry(id))

    async def delete(self, id: str) -> None:
        """Forget a batch that is over; its files stay."""
        await self._client.do(calls.delete(id))

    async def failed(self, id: str) -> AsyncGenerator[Failure, None]:
        """Lines that have no good answer, in the order of the input."""
        after = None
        while True:
            page = await self._client.do(calls.failed(id, after))
            for each in page.data:
                yield each
            if not page.has_more:
                return
            after = page.data[-1].line

    async def results(self, batch: Batch) -> AsyncGenerator[Answer, None]:
        """What came of each line: the good ones in the order of the input, then the others."""
        for file in (batch.output_file_id, batch.error_file_id):
            if file is not None:
                async with aclosing(self._client.stream(calls.content(file))) as stream:
                    async for line in stream:
                        yield lines.answer(line)
