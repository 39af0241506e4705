"""What a server tells of its cached pages, over ZeroMQ in vLLM's format."""

import asyncio
import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING

import msgspec

from kvrt.errors import ConfigError
from kvrt.integrations.events.wire import EventBatch
from kvrt.integrations.prefixes import Prefixes

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)

REPLAY_S = 5.0
"""What there was before has so long to come; what comes later is not waited for."""


class Listening:
    """Keeps `prefixes` as they are told, until closed.

    Batches are numbered. Where one is missing, what was told before may be so no more: it is
    fetched if there is an address for that, and otherwise all is forgotten.

    Args:
        events: where batches are published.
        replay: where earlier ones can be had; None: nowhere.
        prefixes: of that server.

    Raises:
        ConfigError: pyzmq is not installed, or an address is none.
    """

    def __init__(self, events: str, replay: str | None, prefixes: Prefixes) -> None:
        if find_spec("zmq") is None:
            raise ConfigError(
                "events of cached pages need what is not installed: pyzmq",
                fix="pip install 'kvrt[route]'",
            )
        import zmq
        import zmq.asyncio

        self._prefixes = prefixes
        self._replay = replay
        self._decode = msgspec.msgpack.Decoder(EventBatch).decode
        self._next = 0
        self._heard = 0.0  # when the last batch was made
        self._context = zmq.asyncio.Context()
        self._context.linger = 0
        try:
            self._socket = self._context.socket(zmq.SUB)
            self._socket.set_hwm(0)
            self._socket.subscribe(b"")
            self._socket.connect(events)
        except zmq.ZMQError as error:
            self._context.destroy()
            raise ConfigError(f"{events!r:.200} cannot be listened to: {error}") from None
        self._task = asyncio.create_task(self._run(), name=f"listening to {events}")

    def close(self) -> None:
        self._task.cancel()
        self._context.destroy()

    async def _run(self) -> None:
        await self._fetch(0)
        while True:
            told = self._read(await self._socket.recv_multipart())
            if told is None:
                continue
            number, batch = told
            if number < self._next:
                if batch.ts <= self._heard:  # it was fetched
                    continue
                self._prefixes.forget()  # another process has begun anew
                self._next = 0
            if number > self._next:
                await self._fetch(self._next)
            self._hear(number, batch)

    async def _fetch(self, first: int) -> None:
        """What was told from a number on."""
        if self._replay is None:
            self._prefixes.forget()
            return
        import zmq

        socket = self._context.socket(zmq.DEALER)
        try:
            socket.connect(self._replay)
            async with asyncio.timeout(REPLAY_S):
                await socket.send_multipart([b"", first.to_bytes(8, "big")])
                while (told := self._read(await socket.recv_multipart())) is not None:
                    self._hear(*told)
        except (TimeoutError, zmq.ZMQError):
            self._prefixes.forget()
        finally:
            socket.close()

    def _hear(self, number: int, batch: EventBatch) -> None:
        """A batch; one that was heard before is passed over."""
        if number < self._next:
            return
        if number > self._next:
            self._prefixes.forget()
        self._next, self._heard = number + 1, batch.ts
        self._prefixes.hear(batch.events)

    def _read(self, parts: list[bytes]) -> tuple[int, EventBatch] | None:
        """Of ``[..., number, batch]``; None: it is no batch, or says that there are no more."""
        if len(parts) < 2 or len(parts[-2]) != 8:
            return None
        number = int.from_bytes(parts[-2], "big", signed=True)
        if number < 0:
            return None
        try:
            return number, self._decode(parts[-1])
        except msgspec.MsgspecError:
            log.warning("a batch of events is not as vLLM's are, and is left out")
            return None
