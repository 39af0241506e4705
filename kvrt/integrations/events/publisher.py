"""Publishes what is cached over ZeroMQ, as vLLM does.

    PUB      [topic, number, batch]                       to all who subscribe, as it happens
    ROUTER   [number]  ->  [topic, number, batch] ...     on request, from a number on
                           ["", -1, ""]                   that was all

A number is 8 bytes, big-endian, and counts batches from 0 without a gap. Who misses one, or comes
late, asks for what there was from a number on; the last ones are kept.
"""

import contextlib
import logging
import os
import threading
import time
from collections import deque
from types import TracebackType
from typing import Self

import msgspec
import zmq

from kvrt.engine.events import CacheChanged, Event
from kvrt.errors import ConfigError
from kvrt.integrations.events.wire import EventBatch, block_events
from kvrt.runtime import Runtime

log = logging.getLogger(__name__)

KEPT_BATCHES = 10_000
WAITING_BATCHES = 100_000
"""Messages that a subscriber may lag behind before it loses some."""

END = (-1).to_bytes(8, "big", signed=True)
"""In place of a number: nothing more was kept."""

LINGER_MS = 500
"""At the end, what was said has so long to be sent."""


class EventPublisher:
    """Takes its addresses at once, and publishes once it follows a runtime, on a thread of its own.

    What it says holds the tokens of prompts, for whoever can reach the address.

    Args:
        endpoint: ZeroMQ's address to publish at. As in vLLM, one of another machine
            (``tcp://router:5557``) is connected to; others (``tcp://*:5557``, port 0 for any that
            is free; ``tcp://127.0.0.1:5557``; ``ipc://PATH``) are bound.
        replay: where requests for earlier batches are answered; None: nowhere.
        topic: of all messages.

    Raises:
        ConfigError: an address cannot be had.
    """

    def __init__(self, endpoint: str, *, replay: str | None = None, topic: str = "") -> None:
        self._topic = topic.encode()
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=KEPT_BATCHES)
        self._encode = msgspec.msgpack.Encoder().encode
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._runtime: Runtime | None = None
        self._number = self._seen = 0
        self._context = zmq.Context()
        self._context.linger = LINGER_MS
        self._replay: zmq.Socket[bytes] | None = None
        try:
            self._socket = self._context.socket(zmq.PUB)
            self._socket.set_hwm(WAITING_BATCHES)
            self.endpoint = _place(self._socket, endpoint, connects=not _is_own(endpoint))
            """Where it publishes."""
            self.replay: str | None = None
            """Where it answers requests; None: nowhere."""
            if replay is not None:
                self._replay = self._context.socket(zmq.ROUTER)
                self.replay = _place(self._replay, replay)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def follow(self, runtime: Runtime) -> None:
        """Publish what is cached by a runtime, and what becomes of it, until this is closed.

        Raises:
            ConfigError: it follows one already, or that one caches nothing.
        """
        if self._runtime is not None:
            raise ConfigError("a publisher follows one runtime; this one has one")
        if not runtime.config.prefix_cache:
            raise ConfigError(
                "a runtime without a prefix cache has nothing to publish",
                fix="leave prefix_cache on",
            )
        self._runtime = runtime
        self._root = runtime.page_root()
        runtime.add_observer(self._observe)
        self._thread = threading.Thread(target=self._run, name="kvrt-kv-events", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Publish what has happened, and end. Safe to call twice."""
        if self._stopping:
            return
        self._stopping = True
        if self._runtime is not None and self._thread is not None:
            self._runtime.remove_observer(self._observe)
            os.eventfd_write(self._wake, 1)
            self._thread.join()
        self._context.destroy()
        os.close(self._wake)

    # --- within --------------------------------------------------------------------------------

    def _observe(self, event: Event) -> None:
        """On the engine's thread."""
        if isinstance(event, CacheChanged):
            os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake, zmq.POLLIN)
        if self._replay is not None:
            poller.register(self._replay, zmq.POLLIN)
        ended = False
        while not ended:
            ended = self._stopping
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            self._publish()
            ready = {} if ended else dict(poller.poll())
            if self._replay is not None and self._replay in ready:
                self._answer(self._replay)

    def _publish(self) -> None:
        """Say what has happened since this was last called."""
        assert self._runtime is not None
        events = self._runtime.cache_events(self._seen)
        if not events:
            return
        said = block_events(events, self._seen, self._root)
        self._seen = events[-1].number
        if said:
            payload = self._encode(EventBatch(time.time(), said, 0))
            self._send(self._socket, self._number, payload)
            self._kept.append((self._number, payload))
            self._number += 1

    def _answer(self, replay: "zmq.Socket[bytes]") -> None:
        match replay.recv_multipart():
            case [client, b"", start] if len(start) == 8:
                first = int.from_bytes(start, "big")
                for number, payload in self._kept:
                    if number >= first:
                        self._send(replay, number, payload, client, b"")
                replay.send_multipart([client, b"", b"", END, b""])
            case frames:
                log.warning("a request for earlier events of %d frames is no number", len(frames))

    def _send(self, socket: "zmq.Socket[bytes]", number: int, payload: bytes, *to: bytes) -> None:
        socket.send_multipart([*to, self._topic, number.to_bytes(8, "big"), payload])


def _is_own(endpoint: str) -> bool:
    """Whether it is an address of this machine, as far as its text says so."""
    scheme, _, place = endpoint.partition("://")
    host = place.rpartition(":")[0]
    return scheme != "tcp" or host in ("*", "[::]", "::", "0.0.0.0", "127.0.0.1", "localhost")


def _place(socket: "zmq.Socket[bytes]", endpoint: str, *, connects: bool = False) -> str:
    """Bind, or connect; where it is then."""
    try:
        if connects:
            socket.connect(endpoint)
            return endpoint
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        raise ConfigError(
            f"{endpoint!r} cannot be had for events: {error.strerror}",
            fix="give an address such as tcp://127.0.0.1:5557",
        ) from None
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)
