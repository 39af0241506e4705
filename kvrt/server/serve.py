"""A server from its start to its end."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from starlette.applications import Starlette

from kvrt.aio.runtime import AsyncRuntime
from kvrt.batches.store import Store
from kvrt.config import RuntimeConfig
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
from kvrt.server.desk import Desk
from kvrt.server.fleet.app import make_models_app
from kvrt.server.fleet.naming import Folder
from kvrt.server.fleet.opening import open_models
from kvrt.server.llama.app import UNGUARDED as LLAMA_OPEN
from kvrt.server.llama.app import make_llama_app, make_vectors_app
from kvrt.server.llama.errors import words as llama_words
from kvrt.server.llama.front import Front
from kvrt.server.llama.settings import Face
from kvrt.server.openai.audio import Audio
from kvrt.server.openai.embeddings import MAX_BODY, Embeddings
from kvrt.server.rerank import Rerank
from kvrt.server.served import read_template
from kvrt.server.service import Service
from kvrt.server.telemetry.audit import Audit
from kvrt.server.telemetry.tracing import Tracing
from kvrt.server.tenants.accounts import Accounts
from kvrt.server.tenants.ledger import Ledger
from kvrt.server.wire.listener import Listener, bind, url_of
from kvrt.server.wire.prefix import without_prefix

if TYPE_CHECKING:
    from kvrt.integrations.events import EventPublisher


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a server needs beside a model, so that it is known to be there before one is loaded.

    Args:
        bound: a socket at the address; nobody can connect before `serve`.
        keys: of clients, or what stands for keys; None: they need none.
        template: a chat template.
        ledger: who has taken what; closed in the end. None: nothing is kept.
        audit: the audit log; closed in the end.
        tracing: likewise.
        publisher: of what is cached; None: nobody is told.
        store: of files and batches; None: there are none.
        hook: who is told of batches; None: nobody.
    """

    bound: socket.socket
    keys: Credentials | None
    template: str | None
    ledger: Ledger | None
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
        if self.ledger is not None:
            self.ledger.close()

    @property
    def url(self) -> str:
        """Where clients find it."""
        return url_of(self.bound)


def prepare(config: ServerConfig, keys: Credentials | None = None) -> Prepared:
    """Open what the configuration names.

    Args:
        keys: of clients, beside those that it names.

    Raises:
        ConfigError: the keys or the chat template cannot be read, the audit log cannot be written,
            there is no such address here, another program has the port, or what events need is not
            installed; or the folder of batches cannot be had.
    """
    keys = _credentials(config) or keys
    template = None if config.chat_template is None else read_template(config.chat_template)
    limits = Limits.read(config.limits)
    if limits.lasting and config.usage is None:
        raise ConfigError(
            "limits of days or months are to be known after a restart, too", fix="give --usage FILE"
        )
    hook = None
    if config.batch_webhook is not None and config.batch_webhook_secret is not None:
        hook = Hook.read(config.batch_webhook, config.batch_webhook_secret)
    audit = None
    if config.audit is not None:
        audit = Audit(config.audit, config.audit_size, config.audit_days)
    tracing = Tracing() if config.otel else None
    with contextlib.ExitStack() as opened:
        bound = opened.enter_context(contextlib.closing(bind(config.host, config.port)))
        ledger = None
        if config.usage is not None:
            ledger = Ledger(config.usage, config.usage_days)
            opened.enter_context(contextlib.closing(ledger))
        store = None
        if config.batches is not None:
            store = opened.enter_context(
                contextlib.closing(
                    Store(config.batches, tells=hook is not None, url=config.batch_database)
                )
            )
        publisher = _publisher(config)
        prepared = Prepared(bound, keys, template, ledger, audit, tracing, publisher, store, hook)
        opened.pop_all()
    return prepared


def _credentials(config: ServerConfig) -> Credentials | None:
    lasting = config.usage is not None
    keys = None if config.keys is None else Keys(config.keys, lasting=lasting)
    issuer = None
    if config.jwt_issuer is not None and config.jwt_audience is not None:
        trust = Trust(
            config.jwt_issuer,
            config.jwt_audience,
            config.jwt_keys,
            config.jwt_role,
            config.jwt_workspace,
        )
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


NOTHING = Beside()


async def serve(
    runtime: Runtime,
    config: ServerConfig,
    prepared: Prepared,
    begun: Callable[[], None],
    beside: Beside = NOTHING,
    face: Face | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; answers go on for `drain_seconds` then. A second signal ends
    the process at once.

    Args:
        prepared: by `prepare`; what it opened is closed in the end.
        begun: called when clients can connect.
        beside: other models.
        face: it has the routes of llama-server, set up like this.

    Raises:
        ModelError: the chat template is not valid, or the model's defaults cannot be.
        ConfigError: a chat template is given, and the model has no tokenizer.
    """
    if prepared.publisher is not None:
        prepared.publisher.follow(runtime)
    desk = _desk(config, prepared, beside)
    service = Service(AsyncRuntime(runtime), config, prepared.template, desk)
    served = service.served
    names = {"strict": served.strict, "any_name": served.any_name}
    embeddings, rerank = Embeddings(beside.embedder, **names), Rerank(beside.reranker, **names)
    audio = Audio(beside.transcriber, **names)
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
    front = None
    try:
        front = None if face is None else Front(service, face)
        if front is None:
            app = make_app(service, embeddings, rerank, audio, worker)
        else:
            app = make_llama_app(front)
        ending = (lambda: None) if worker is None else worker.stop
        await _listen(app, desk, prepared, begun, served.max_body, ending, face)
    finally:
        if front is not None:
            front.close()
        if worker is not None:
            await worker.close()
        service.close()
        await _close(prepared)


async def serve_models(
    configs: Mapping[str, RuntimeConfig],
    folder: Folder | None,
    config: ServerConfig,
    prepared: Prepared,
    begun: Callable[[], None],
    beside: Beside = NOTHING,
) -> None:
    """As `serve`, for several models, each of which is loaded when it is asked for.

    Args:
        configs: of each model, by its name.
        folder: where further ones are, and may come; None: nowhere.

    Raises:
        KvrtError: a model that was named is not there, or not supported.
    """
    desk = _desk(config, prepared, beside)
    names = {"strict": config.strict, "any_name": False}
    embeddings, rerank = Embeddings(beside.embedder, **names), Rerank(beside.reranker, **names)
    audio = Audio(beside.transcriber, **names)
    try:
        models = await open_models(configs, folder, desk, prepared.template)
        try:
            app = make_models_app(models, embeddings, rerank, audio)
            await _listen(app, desk, prepared, begun, models.max_body, models.end)
        finally:
            await models.close()
    finally:
        await _close(prepared)


async def serve_vectors(
    config: ServerConfig,
    prepared: Prepared,
    begun: Callable[[], None],
    beside: Beside,
    face: Face,
) -> None:
    """As `serve` with the routes of llama-server, where no model answers."""
    desk = _desk(config, prepared, beside)
    app = make_vectors_app(desk, face, beside, config.alias[0])
    try:
        await _listen(app, desk, prepared, begun, MAX_BODY, lambda: None, face)
    finally:
        await _close(prepared)


def _desk(config: ServerConfig, prepared: Prepared, beside: Beside) -> Desk:
    accounts = Accounts(Limits.read(config.limits), prepared.keys, prepared.ledger)
    return Desk(config, prepared.audit, prepared.tracing, accounts, beside.embedder)


async def _listen(
    app: Starlette,
    desk: Desk,
    prepared: Prepared,
    begun: Callable[[], None],
    max_body: int,
    ending: Callable[[], None],
    face: Face | None = None,
) -> None:
    """Answer until the end; see `Listener`."""
    guard = Guard(app, desk.book, desk.config.host, prepared.keys)
    if face is not None:
        guard = Guard(app, desk.book, desk.config.host, prepared.keys, llama_words, LLAMA_OPEN)
    server = Listener(
        without_prefix(guard),
        desk.gate,
        drain_seconds=desk.config.drain_seconds,
        max_message=max_body,
        begun=begun,
        ending=ending,
        cut=desk.cut_all,
    )
    refreshing = [
        asyncio.create_task(each.keep_fresh())
        for each in (prepared.keys.of if prepared.keys else ())
    ]
    try:
        await server.listen(prepared.bound)
    finally:
        for task in refreshing:
            task.cancel()


async def _close(prepared: Prepared) -> None:
    prepared.close()
    if prepared.audit is not None:
        await asyncio.to_thread(prepared.audit.close)
    if prepared.tracing is not None:
        await asyncio.to_thread(prepared.tracing.close)
