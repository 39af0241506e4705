"""Where connections come in: a socket at an address, and uvicorn over it."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from kvrt.errors import ConfigError
from kvrt.server.access.gate import Gate
from kvrt.server.wire import sockets
from kvrt.server.wire.connection import Connection

HEADERS_LIMIT = 64 << 10
"""Bytes of a request's line and headers."""

KEEP_ALIVE_S = 75
"""A connection may be idle for so long."""

CUT_S = 5.0
"""What is cut off has so long to say so."""

SPARE_CONNECTIONS = 256
"""Beside those of requests that are answered."""


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address; nobody can connect before `Listener.serve`.

    Raises:
        ConfigError: there is no such address here, or another program has the port.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"port {port} of {host} cannot be had: {error.strerror}",
            fix="give another with --host and --port; --port 0 takes one that is free",
        ) from None
    bound.setblocking(False)
    return bound


def url_of(bound: socket.socket) -> str:
    """Where clients find it."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Listener(uvicorn.Server):
    """Takes requests until SIGTERM or SIGINT; answers go on for `drain_seconds` then, and a second
    signal ends the process at once.

    Args:
        app: answers.
        gate: closed when no more are to come in.
        drain_seconds: see above.
        max_message: bytes of a message over a WebSocket.
        begun: called when clients can connect.
        ending: called when the server is to end.
        cut: called when nothing may go on any longer.
    """

    def __init__(
        self,
        app: ASGIApp,
        gate: Gate,
        *,
        drain_seconds: float,
        max_message: int,
        begun: Callable[[], None],
        ending: Callable[[], None],
        cut: Callable[[], None],
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws="wsproto" if sockets.offered() else "none",
                ws_max_size=max_message,
                loop="none",
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=HEADERS_LIMIT,
                limit_concurrency=gate.most + SPARE_CONNECTIONS,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=int(drain_seconds + CUT_S) + 1,
            )
        )
        self._gate, self._drain_seconds = gate, drain_seconds
        self._begun, self._ending, self._cut = begun, ending, cut

    async def listen(self, bound: socket.socket) -> None:
        """Serve at a socket until a signal; by the running event loop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, partial(self._end, number))
        await self.serve([bound])

    def _end(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        if self._gate.closing:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._gate.closing = True
        self.should_exit = True
        self._ending()
        loop.call_later(self._drain_seconds, self._cut)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """They are left alone: `listen` has handlers."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._begun()
