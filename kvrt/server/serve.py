"""A server from its start to its end."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

import uvicorn

from kvrt.aio.runtime import AsyncRuntime
from kvrt.batches.store import Store
from kvrt.errors import ConfigError
from kvrt.runtime import Runtime
from kvrt.server.access.guard import Guard
from kvrt.server.access.keys import Keys
from kvrt.server.access.limits import Limits
from kvrt.server.access.oidc import Credentials, Issuer, Trust
from kvrt.server.app import make_app
from kvrt.server.batches.webhooks import Hook
from kvrt.server.batches.worker import Worker
from kvrt.server.beside import Beside
from kvrt.server.config import ServerConfig
from kvrt.server.openai.embeddings import Embeddings
from kvrt.server.rerank import Rerank
from kvrt.server.served import read_template
from kvrt.server.service import Service
from kvrt.server.telemetry.audit import Audit
from kvrt.server.telemetry.tracing import Tracing
from kvrt.server.wire import sockets
from kvrt.server.wire.connection import Connection

if TYPE_CHECKING:
    from kvrt.integrations.events import EventPublisher

HEADERS_LIMIT = 64 << 10
"""Bytes of a request's line and headers."""

KEEP_ALIVE_S = 75
"""A connection may be idle for so long."""

CUT_S = 5.0
"""What is cut off has so long to say so."""

SPARE_CONNECTIONS = 256
"""Beside those of requests that are answered."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a server needs beside a model, so that it is known to be there before one is loaded.

    Args:
        bound: a socket at the address; nobody can connect before `serve`.
        keys: of clients, or what stands for keys; None: they need none.
        template: a chat template.
        audit: the audit log; closed in the end.
        tracing: likewise.
        publisher: of what is cached; None: nobody is told.
        store: of files and batches; None: there are none.
        hook: who is told of batches; None: nobody.
    """

    bound: socket.socket
    keys: Credentials | None
    template: str | None
    audit: Audit | None
    tracing: Tracing | None
    publisher: "EventPublisher | None"
    store: Store | None
    hook: Hook | None

    def close(self) -> None:
        """Safe to call twice."""
        self.bound.close()
        if self.publisher is not None:
            self.publisher.close()
        if self.store is not None:
            self.store.close()

    @property
    def url(self) -> str:
        """Where clients find it."""
        host, port = self.bound.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def prepare(config: ServerConfig) -> Prepared:
    """Open what the configuration names.

    Raises:
        ConfigError: the keys or the chat template cannot be read, the audit log cannot be written,
            there is no such address here, another program has the port, or what events need is not
            installed; or the folder of batches cannot be had.
    """
    keys = _credentials(config)
    template = None if config.chat_template is None else read_template(config.chat_template)
    Limits.read(config.limits)
    hook = None
    if config.batch_webhook is not None and config.batch_webhook_secret is not None:
        hook = Hook.read(config.batch_webhook, config.batch_webhook_secret)
    audit = None if config.audit is None else Audit(config.audit)
    tracing = Tracing() if config.otel else None
    with contextlib.ExitStack() as opened:
        bound = opened.enter_context(contextlib.closing(_bind(config)))
        store = None
        if config.batches is not None:
            store = opened.enter_context(
                contextlib.closing(Store(config.batches, tells=hook is not None))
            )
        prepared = Prepared(bound, keys, template, audit, tracing, _publisher(config), store, hook)
        opened.pop_all()
    return prepared


def _credentials(config: ServerConfig) -> Credentials | None:
    keys = None if config.keys is None else Keys(config.keys)
    issuer = None
    if config.jwt_issuer is not None and config.jwt_audience is not None:
        trust = Trust(config.jwt_issuer, config.jwt_audience, config.jwt_keys, config.jwt_role)
        issuer = Issuer(trust)
    return None if keys is None and issuer is None else Credentials(keys, issuer)


def _publisher(config: ServerConfig) -> "EventPublisher | None":
    if config.kv_events is None:
        return None
    if find_spec("zmq") is None:
        raise ConfigError(
            "events of cached pages need what is not installed: pyzmq",
            fix="pip install 'kvrt[events]'",
        )
    from kvrt.integrations.events import EventPublisher

    return EventPublisher(config.kv_events, replay=config.kv_events_replay)


def _bind(config: ServerConfig) -> socket.socket:
    try:
        found = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
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
            f"port {config.port} of {config.host} cannot be had: {error.strerror}",
            fix="give another with --host and --port; --port 0 takes one that is free",
        ) from None
    bound.setblocking(False)
    return bound


NOTHING = Beside()


async def serve(
    runtime: Runtime,
    config: ServerConfig,
    prepared: Prepared,
    begun: Callable[[], None],
    beside: Beside = NOTHING,
) -> None:
    """Serve until SIGTERM or SIGINT; answers go on for `drain_seconds` then. A second signal ends
    the process at once.

    Args:
        prepared: by `prepare`; what it opened is closed in the end.
        begun: called when clients can connect.
        beside: other models.

    Raises:
        ModelError: the chat template is not valid, or the model's defaults cannot be.
        ConfigError: a chat template is given, and the model has no tokenizer.
    """
    if prepared.publisher is not None:
        prepared.publisher.follow(runtime)
    service = Service(
        AsyncRuntime(runtime), config, prepared.template, prepared.audit, prepared.tracing
    )
    served = service.served
    names = {"strict": served.strict, "any_name": served.any_name}
    embeddings, rerank = Embeddings(beside.embedder, **names), Rerank(beside.reranker, **names)
    worker = None
    if prepared.store is not None:
        worker = Worker(
            prepared.store,
            service,
            embeddings,
            space=config.batch_space,
            most=config.batch_lines,
            hook=prepared.hook,
        )
        await worker.begin()
    server = _Server(
        uvicorn.Config(
            Guard(
                make_app(service, embeddings, rerank, worker),
                service.book,
                config.host,
                prepared.keys,
            ),
            http=Connection,
            ws="wsproto" if sockets.offered() else "none",
            ws_max_size=service.served.max_body,
            loop="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=HEADERS_LIMIT,
            limit_concurrency=config.max_requests + SPARE_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(config.drain_seconds + CUT_S) + 1,
        ),
        begun,
    )
    loop = asyncio.get_running_loop()

    def end(number: int) -> None:
        if service.gate.closing:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        service.gate.closing = True
        server.should_exit = True
        if worker is not None:
            worker.stop()
        loop.call_later(config.drain_seconds, service.cut_all)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, partial(end, number))
    issuer = prepared.keys.issuer if prepared.keys else None
    refreshing = None if issuer is None else asyncio.create_task(issuer.keep_fresh())
    try:
        await server.serve([prepared.bound])
    finally:
        if refreshing is not None:
            refreshing.cancel()
        if worker is not None:
            await worker.close()
        service.close()
        prepared.close()
        if prepared.audit is not None:
            await asyncio.to_thread(prepared.audit.close)
        if prepared.tracing is not None:
            await asyncio.to_thread(prepared.tracing.close)


class _Server(uvicorn.Server):
    """Leaves signals alone, and says when it has begun."""

    def __init__(self, config: uvicorn.Config, begun: Callable[[], None]) -> None:
        super().__init__(config)
        self._begun = begun

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._begun()
