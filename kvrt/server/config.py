"""How a server is set up."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kvrt.batches.postgres import check
from kvrt.batches.price import Price
from kvrt.checks import (
    Checks,
    Flag,
    Folder,
    Maybe,
    Number,
    OneOf,
    Text,
    Texts,
    Whole,
    check_options,
)
from kvrt.errors import ConfigError
from kvrt.net.address import is_loopback
from kvrt.units import parse_seconds

COMPATS = ("vllm",)
"""Whose names metrics may have beside our own."""

OBJECTIVES = ("ttft_p95",)
"""That a service-level objective may be of."""

ANY_NAME = "*"
"""An alias that stands for every name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Checked when made: a bad value is a `ConfigError`.

    Args:
        host: address to listen at.
        port: 0: any that is free.
        alias: names of the model, for clients, beside its own; ``*``: every name is its.
        keys: a file of keys, of which clients need one; see `kvrt.server.access.keys`.
        jwt_issuer, jwt_audience, jwt_keys, jwt_role, jwt_workspace: whose tokens are taken as keys;
            see `kvrt.server.access.oidc.Trust`.
        limits: of each key that has none of its own, as
            `kvrt.server.access.limits.Limits.read` takes them.
        usage: a file for who has taken what; see `kvrt.server.tenants.ledger`.
        usage_days: days after which it forgets a request.
        audit: a file for the audit log; see `kvrt.server.telemetry.audit`.
        audit_size: bytes after which the audit log begins anew; None: it does not for that.
        audit_days: days that it begins anew after each of, and after which it is deleted; None:
            neither.
        otel: a span of OpenTelemetry for each request; see `kvrt.server.telemetry.tracing`.
        metrics_compat: ``vllm``: metrics have its names, too.
        without_keys: listen at an address that others reach, although there are no keys.
        strict: fields that are not known are refused.
        max_requests: sequences that may be asked for at once; more is refused for now.
        deadline: seconds after which an answer is cut, also one that waits; None: none but what a
            request says itself (`kvrt.server.endpoint.DEADLINE`).
        max_body: bytes of a request's body; None: what the longest prompt can need.
        response_cache: bytes of answers that are kept for who asks the same again; None: none.
        response_cache_all: also for requests that do not say that they want it.
        semantic_cache: how near a question has to be to one of before, from 0 to 1, so that its
            answer is told to who asks for that; None: it never is.
        semantic_cache_size: bytes that these answers may take.
        semantic_cache_seconds: that they are told for.
        drain_seconds: at the end, answers may go on for so long.
        ready_seconds: not ready once there is work, and no step for so long.
        kv_events: where to publish what is cached; see `kvrt.integrations.events`. None: nowhere.
        kv_events_replay: where to answer requests for what was published before.
        batches: a folder for files and batches; None: none are taken.
        batch_database: keeps them for several servers that all see the folder; see
            `kvrt.batches.postgres`. None: one server has it.
        batch_space: bytes that the files of one key may take.
        batch_lines: that a batch may have.
        batch_price: of the work on batches; see `kvrt.batches.price.Price`.
        batch_webhook, batch_webhook_secret: who is told of batches that are over; see
            `kvrt.server.batches.webhooks.Hook`.
        embed_model: makes vectors of texts; see `kvrt.Embedder`.
        rerank_model: sorts texts; see `kvrt.Reranker`.
        speech_model: writes what is said; see `kvrt.Transcriber`.
        chat_template: a file, or ``plain``, for a model that has no chat template, or another.
        reader: the name of what takes answers apart, instead of what the chat template shows.
        lora: adapters of the model, each as ``NAME=PATH``: clients ask them by their names.
        keep_alive: seconds that a model stays without requests, of several; negative: always.
        max_waiting: requests that may wait for one model to be loaded, of several.
        slo: ``ttft_p95=500ms``: the time to the first token that models are kept loaded for, of
            several.
        devices: that models may be on, of several; see `kvrt.server.fleet.places.read_places`.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    alias: tuple[str, ...] = ()
    keys: Path | None = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    jwt_keys: str | None = None
    jwt_role: str | None = None
    jwt_workspace: str | None = None
    limits: tuple[str, ...] = ()
    usage: Path | None = None
    usage_days: int = 400
    audit: Path | None = None
    audit_size: int | None = None
    audit_days: int | None = None
    otel: bool = False
    metrics_compat: str | None = None
    without_keys: bool = False
    strict: bool = False
    max_requests: int = 512
    deadline: float | None = None
    max_body: int | None = None
    response_cache: int | None = None
    response_cache_all: bool = False
    semantic_cache: float | None = None
    semantic_cache_size: int = 64 << 20
    semantic_cache_seconds: float = 3600.0
    drain_seconds: float = 30.0
    ready_seconds: float = 30.0
    kv_events: str | None = None
    kv_events_replay: str | None = None
    chat_template: str | None = None
    reader: str | None = None
    embed_model: str | None = None
    rerank_model: str | None = None
    speech_model: str | None = None
    batches: Path | None = None
    batch_database: str | None = None
    batch_space: int = 4 << 30
    batch_lines: int = 50_000
    batch_price: str | None = None
    batch_webhook: str | None = None
    batch_webhook_secret: Path | None = None
    lora: tuple[str, ...] = ()
    keep_alive: float = 300.0
    max_waiting: int = 512
    slo: str | None = None
    devices: str | None = None

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in OPTIONS}
        for name, value in check_options(OPTIONS, **given).items():
            object.__setattr__(self, name, value)
        if len(self.adapters) < len(self.lora) or not all(map(all, self.adapters.items())):
            raise ConfigError(
                "lora is to be NAME=PATH, each with a name of its own", fix="as --lora law=./law"
            )
        if self.slo is not None:
            read_objective(self.slo)
        if (self.jwt_issuer is None) != (self.jwt_audience is None):
            raise ConfigError(
                "jwt_issuer and jwt_audience go together",
                fix="say whose tokens are taken, and what they call this server",
            )
        if self.jwt_issuer is None and (self.jwt_keys or self.jwt_role or self.jwt_workspace):
            raise ConfigError(
                "jwt_keys, jwt_role and jwt_workspace are of an issuer", fix="name it: --jwt-issuer"
            )
        if self.batch_price is not None:
            Price.read(self.batch_price)
        if (self.batch_webhook is None) != (self.batch_webhook_secret is None):
            raise ConfigError("batch_webhook and batch_webhook_secret go together")
        for name in ("batch_webhook", "batch_database"):
            if getattr(self, name) is not None and self.batches is None:
                raise ConfigError(f"{name} is of no use without batches", fix="give --batches DIR")
        if self.batch_database is not None:
            check(self.batch_database)
        if self.semantic_cache is not None and self.embed_model is None:
            raise ConfigError(
                "semantic_cache compares questions, and nothing makes their vectors",
                fix="give --embed-model MODEL",
            )
        if self.response_cache_all and self.response_cache is None:
            raise ConfigError("response_cache_all needs a size", fix="give --response-cache SIZE")
        guarded = self.keys is not None or self.jwt_issuer is not None
        if self.limits and not guarded:
            raise ConfigError("limits are of keys, and there are none", fix="give --keys FILE")
        if not guarded and not self.without_keys and not is_loopback(self.host):
            raise ConfigError(
                f"host is {self.host:.60}, which others reach, and no keys are asked for",
                fix="give keys with --keys FILE or tokens with --jwt-issuer URL, or say"
                " --without-keys if something else guards it",
            )
        if self.audit is None and (self.audit_size or self.audit_days):
            raise ConfigError("audit_size and audit_days are of an audit log", fix="give --audit")
        if self.kv_events_replay is not None and self.kv_events is None:
            raise ConfigError("kv_events_replay has nothing to answer with without kv_events")

    @property
    def objective(self) -> float | None:
        """Seconds, of `slo`."""
        return None if self.slo is None else read_objective(self.slo)

    @property
    def adapters(self) -> Mapping[str, str]:
        """Paths of adapters, by their names."""
        return {name: path for name, _, path in (each.partition("=") for each in self.lora)}


OPTIONS: Checks = {
    "host": Text(253),
    "port": Whole(0, 65535),
    "alias": Texts(64, 256),
    "keys": Maybe(Folder()),
    "jwt_issuer": Maybe(Text(2048)),
    "jwt_audience": Maybe(Text(2048)),
    "jwt_keys": Maybe(Text()),
    "jwt_role": Maybe(Text(256)),
    "jwt_workspace": Maybe(Text(256)),
    "limits": Texts(16, 64),
    "usage": Maybe(Folder()),
    "usage_days": Whole(1, 36_500),
    "audit": Maybe(Folder()),
    "audit_size": Maybe(Whole(1024, 2**50)),
    "audit_days": Maybe(Whole(1, 36_500)),
    "otel": Flag(),
    "metrics_compat": Maybe(OneOf(COMPATS)),
    "without_keys": Flag(),
    "strict": Flag(),
    "max_requests": Whole(1, 100_000),
    "deadline": Maybe(Number(0, 999_999, above=True)),
    "max_body": Maybe(Whole(1024, 2**31 - 1)),
    "response_cache": Maybe(Whole(1, 2**40)),
    "response_cache_all": Flag(),
    "semantic_cache": Maybe(Number(0, 1, above=True)),
    "semantic_cache_size": Whole(1, 2**40),
    "semantic_cache_seconds": Number(0, 10**9, above=True),
    "drain_seconds": Number(0, 86_400),
    "ready_seconds": Number(0, 86_400, above=True),
    "kv_events": Maybe(Text()),
    "kv_events_replay": Maybe(Text()),
    "chat_template": Maybe(Text()),
    "reader": Maybe(Text(256)),
    "embed_model": Maybe(Text()),
    "rerank_model": Maybe(Text()),
    "speech_model": Maybe(Text()),
    "batches": Maybe(Folder()),
    "batch_database": Maybe(Text(2048)),
    "batch_space": Whole(1, 2**50),
    "batch_lines": Whole(1, 10_000_000),
    "batch_price": Maybe(Text(32)),
    "batch_webhook": Maybe(Text(2048)),
    "batch_webhook_secret": Maybe(Folder()),
    "lora": Texts(1024, 4096),
    "keep_alive": Number(-math.inf, math.inf),
    "max_waiting": Whole(1, 100_000),
    "slo": Maybe(Text(64)),
    "devices": Maybe(Text(4096)),
}
"""Of each field, what it may be."""


def read_objective(slo: str) -> float:
    """Seconds of ``ttft_p95=500ms``.

    Raises:
        ConfigError: it is none.
    """
    name, _, value = slo.partition("=")
    seconds = parse_seconds(value) if name in OBJECTIVES else 0.0
    if seconds <= 0:
        raise ConfigError("slo is no objective", fix=f"use {OBJECTIVES[0]}=500ms, or another time")
    return seconds
