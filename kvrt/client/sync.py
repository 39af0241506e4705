"""`Client`."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from kvrt.client import calls, inputs, lines
from kvrt.client.calls import LOOK_S, TIMEOUT_S, URL, Call, headers_of, unreachable
from kvrt.client.inputs import Requests
from kvrt.client.standing import Status
from kvrt.client.words import Answer, Batch, Failure, Model, ModelEvent, Usage

T = TypeVar("T")


class Client:
    """A server, as one key sees it. For several threads at once.

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
        self._http = httpx.Client(base_url=url, headers=headers_of(key), timeout=timeout)
        self.batches = Batches(self)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def status(self) -> Status:
        """How the server does right now."""
        return self.do(calls.status())

    def models(self) -> list[Model]:
        """What requests may name."""
        return self.do(calls.models()).data

    def load(self, model: str) -> Model:
        """Have a model loaded, in a server of several. It is begun when this returns."""
        return self.do(calls.order("load", model)).model

    def wake(self, model: str) -> Model:
        """As `load`, of one that sleeps."""
        return self.do(calls.order("wake", model)).model

    def sleep(self, model: str) -> Model:
        """Let it give its memory back, once its requests have ended."""
        return self.do(calls.order("sleep", model)).model

    def unload(self, model: str) -> Model:
        """Likewise, and all else."""
        return self.do(calls.order("unload", model)).model

    def events(self) -> Iterator[ModelEvent]:
        """Where each model stands, and from then on each change, until it is left."""
        for line in self.stream(calls.events()):
            if (found := lines.moved(line)) is not None:
                yield found

    def usage(
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
        return self.do(calls.usage(since, until, workspace))

    def profile(self, seconds: float = 5.0, *, model: str | None = None) -> dict[str, Any]:
        """What the engine does in the seconds to come, for admins: ``steps``, ``phases`` and so on,
        and the ``trace``, which Perfetto opens.

        Args:
            seconds: at most 60.
            model: which of those that are loaded; None: there is one.
        """
        return self.do(calls.profile(seconds, model))

    def end_profile(self) -> None:
        """Let the one that is being made come now."""
        self.do(calls.end_profile())

    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        model: str | None = None,
        **fields: Any,
    ) -> Iterator[str]:
        """What the model says, piece by piece.

        Args:
            messages: as of chat completions, or what a user says.
            model: None: the first.
            fields: others of the request, such as ``temperature``.
        """
        name = self.models()[0].id if model is None else model
        for line in self.stream(calls.chat(name, messages, fields)):
            piece = lines.said(line)
            if piece is None:
                return
            if piece:
                yield piece
        raise lines.cut()

    def do(self, call: Call[T]) -> T:
        """Carry a call out."""
        try:
            response = self._http.request(**call.options())
        except httpx.HTTPError as error:
            raise unreachable(error) from error
        return call.read(response.status_code, response.content, response.headers)

    def stream(self, call: Call[None]) -> Iterator[str]:
        """Lines of what comes back."""
        with self._streamed(call) as response:
            whole = lines.Lines()
            for data in response.iter_bytes():
                yield from whole.push(data)

    @contextmanager
    def _streamed(self, call: Call[None]) -> Iterator[httpx.Response]:
        try:
            with self._http.stream(**call.options()) as response:
                if response.status_code >= 300:
                    body = response.read()
                    raise calls.refused(response.status_code, body, response.headers)
                yield response
        except httpx.HTTPError as error:
            raise unreachable(error) from error


class Batches:
    """Batches of a client's key."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def start(
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
            sent = self._client.do(calls.upload(name, file))
        return self._client.do(calls.create(sent.id, route, window, metadata, priority))

    def get(self, id: str) -> Batch:
        """As it stands."""
        return self._client.do(calls.batch(id))

    def list(self) -> Iterator[Batch]:
        """All, the newest first."""
        after = None
        while True:
            page = self._client.do(calls.batches(after))
            yield from page.data
            if not page.has_more:
                return
            after = page.last_id

    def watch(self, id: str, every: float = LOOK_S) -> Iterator[Batch]:
        """A batch as it goes on, whenever something has changed, until it is over.

        Args:
            every: seconds between two looks.
        """
        last = None
        while True:
            batch = self.get(id)
            if batch != last:
                yield batch
            if batch.over:
                return
            last = batch
            time.sleep(every)

    def cancel(self, id: str) -> Batch:
        """Ask no more lines of it."""
        return self._client.do(calls.cancel(id))

    def retry(self, id: str) -> Batch:
        """Ask lines again that have no good answer."""
        return self._client.do(calls.retry(id))

    def delete(self, id: str) -> None:
        """Forget a batch that is over; its files stay."""
        self._client.do(calls.delete(id))

    def failed(self, id: str) -> Iterator[Failure]:
        """Lines that have no good answer, in the order of the input."""
        after = None
        while True:
            page = self._client.do(calls.failed(id, after))
            yield from page.data
            if not page.has_more:
                return
            after = page.data[-1].line

    def results(self, batch: Batch) -> Iterator[Answer]:
        """What came of each line: the good ones in the order of the input, then the others."""
        for file in (batch.output_file_id, batch.error_file_id):
            if file is not None:
                yield from map(lines.answer, self._client.stream(calls.content(file)))
