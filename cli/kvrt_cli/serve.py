"""``kvrt serve``: a model answers over HTTP."""

import asyncio
import contextlib
import gc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvrt.config import RuntimeConfig
from kvrt.errors import ConfigError
from kvrt_cli.beside import open_beside
from kvrt_cli.extras import check_extra
from kvrt_cli.naming import TINY, model_name
from kvrt_cli.options import color_option, quiet_option
from kvrt_cli.options.runtime import model_options, runtime_config
from kvrt_cli.options.sections import SERVE, SectionedCommand
from kvrt_cli.options.serving import (
    batch_options,
    fleet_options,
    kept_options,
    key_options,
    listening_options,
)
from kvrt_cli.run import open_runtime
from kvrt_cli.terminal import Terminal

if TYPE_CHECKING:
    from kvrt.server.config import ServerConfig
    from kvrt.server.serve import Prepared

NAMES = ("keys", "host", "port", "alias", "jwt_issuer", "jwt_audience", "jwt_keys",
         "jwt_role", "jwt_workspace", "limits", "usage", "usage_days", "audit",
         "audit_size", "audit_days", "otel", "metrics_compat", "without_keys",
         "strict", "max_requests", "max_body", "response_cache", "response_cache_all",
         "semantic_cache", "semantic_cache_size", "semantic_cache_seconds",
         "deadline", "drain_seconds", "ready_seconds", "kv_events", "kv_events_replay",
         "chat_template", "reader", "embed_model", "rerank_model", "speech_model", "batches",
         "batch_database", "batch_space", "batch_lines", "batch_price", "batch_webhook",
         "batch_webhook_secret", "lora", "keep_alive", "max_waiting", "slo",
         "devices")  # fmt: skip
"""Options that are a `ServerConfig`'s as they are."""

SHORT_HELP = "A model answers over HTTP, to clients of OpenAI's API, Anthropic's and Ollama's."


def model_or_named(value: str) -> str:
    """A model, as `model_name`, or ``NAME=MODEL``."""
    name, equals, model = value.partition("=")
    return f"{name}={model_name(model)}" if equals else model_name(value)


def server_config(options: Mapping[str, Any]) -> "ServerConfig":
    """What the options say about the server.

    Raises:
        ConfigError: one cannot be, or two do not go together.
    """
    from kvrt.server.config import ServerConfig

    return ServerConfig(**{name: options[name] for name in NAMES})


@click.command(
    "serve", cls=SectionedCommand, sections=SERVE, settled=server_config, short_help=SHORT_HELP
)
@click.argument("models", metavar="[MODEL]...", nargs=-1, type=model_or_named)
@fleet_options
@click.option(
    "--alias",
    multiple=True,
    metavar="NAME",
    help="Another name of the model, for clients; may be given several times. *: any name is its.",
)
@listening_options(port=8000)
@key_options
@click.option(
    "--otel",
    is_flag=True,
    help="A span of OpenTelemetry for each request, to where OTEL_EXPORTER_OTLP_ENDPOINT says.",
)
@click.option(
    "--metrics-compat",
    type=click.Choice(["vllm"]),
    help="Metrics under the names of another server, too.",
)
@click.option(
    "--embed-model",
    metavar="MODEL",
    help="Makes vectors of texts at /v1/embeddings: as MODEL of kvrt embed.",
)
@click.option(
    "--rerank-model",
    metavar="MODEL",
    help="Sorts texts at /v1/rerank: as MODEL of kvrt rerank.",
)
@click.option(
    "--speech-model",
    metavar="MODEL",
    help="Writes what is said at /v1/audio: as --model of kvrt transcribe.",
)
@batch_options
@click.option(
    "--strict-api", "strict", is_flag=True, help="Refuse fields that are not known, instead of"
    " passing over them."
)  # fmt: skip
@click.option(
    "--max-requests",
    type=click.IntRange(1),
    default=512,
    show_default=True,
    metavar="N",
    help="Completions asked for at once; more are told to come again (429).",
)
@click.option(
    "--deadline",
    type=click.FloatRange(0, min_open=True),
    metavar="S",
    help="An answer that has not ended after so long is cut, also one that waits; a request may say"
    " less (x-kvrt-deadline).",
)
@click.option(
    "--max-body",
    type=click.IntRange(1024),
    metavar="BYTES",
    help="Of a request; default: what the longest prompt and its images can need.",
)
@kept_options
@click.option(
    "--ready-seconds",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="S",
    help="/readyz says no once there is work, and no step for so long.",
)
@click.option(
    "--kv-events",
    metavar="ENDPOINT",
    help="Publish what is cached for routers, in vLLM's format: ZeroMQ's address, such as"
    " tcp://127.0.0.1:5557. Whoever can reach it sees what prompts say.",
)
@click.option(
    "--kv-events-replay",
    metavar="ENDPOINT",
    help="Answer there who asks for what was published before.",
)
@click.option(
    "--chat-template",
    metavar="FILE",
    help="For a model that has none, or in place of its own; plain: one that is built in.",
)
@click.option(
    "--lora",
    multiple=True,
    metavar="NAME=PATH",
    help="A LoRA adapter for the model, which clients ask by NAME; may be given several times.",
)
@click.option(
    "--reader",
    metavar="NAME",
    help="What takes answers apart into reasoning, content and calls of tools, by its entry point"
    " (kvrt.readers); default: what the chat template shows.",
)
@model_options()
@quiet_option
@color_option
@click.pass_obj
def serve(
    terminal: Terminal,
    /,
    models: tuple[str, ...],
    models_dir: Path | None,
    keys: Path | None,
    new_key: str | None,
    role: str,
    workspace: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """A model answers over HTTP, or several.

    MODEL is as of kvrt run, or NAME=MODEL. Of several, the one that a request names answers; it is
    loaded if need be, and others make room. Clients of OpenAI's API find it at http://HOST:PORT/v1,
    those of Anthropic's and Ollama's at http://HOST:PORT; docs/serve.md has the routes. It runs
    until SIGTERM or Ctrl-C.
    """
    terminal.quiet = quiet
    check_extra("serve")
    from kvrt.server.access.keys import add_key
    from kvrt.server.access.limits import Limits

    config = server_config({**options, "keys": keys})
    named = len(models) > 1 or models_dir is not None or "=" in "".join(models)
    several = named or config.devices is not None
    wanted = runtime_config(models[0] if models and not several else TINY, options)
    if config.batches is not None:
        wanted = replace(wanted, policy="priority")  # clients first, and lines behind them
    if new_key is not None:
        if config.keys is None:
            raise click.UsageError("--new-key needs --keys FILE, where the key is to be known")
        limits = Limits.read(config.limits)
        click.echo(add_key(config.keys, new_key, role, limits, workspace or ""))  # type: ignore[arg-type]
        return
    if workspace is not None:
        raise click.UsageError("--workspace is of --new-key; lines of --keys have it as in=NAME")
    from kvrt.server import serve as server

    if several:
        check_several(config, wanted)
    prepared = server.prepare(config)
    spare_collections()
    if several:
        _serve_several(terminal, models, models_dir, config, wanted, prepared)
        return
    with (
        contextlib.closing(prepared),
        open_runtime(terminal, wanted) as runtime,
        open_beside(config, wanted) as beside,
    ):
        for name, path in config.adapters.items():
            runtime.load_adapter(name, path)

        def begun() -> None:
            terminal.note(f"serving at {prepared.url}; Ctrl-C ends it")

        asyncio.run(server.serve(runtime, config, prepared, begun, beside))


def spare_collections() -> None:
    """Import what models compute with, and let collections of garbage pass over all of it.

    A full one goes through 220,000 objects otherwise, nearly all of them torch's, for 60 to 130 ms
    in which no stream goes on. It comes where much is made at once, as when a model is loaded.
    What is loaded later is collected as ever.
    """
    import torch  # noqa: F401

    gc.collect()
    gc.freeze()


def check_several(config: "ServerConfig", wanted: RuntimeConfig) -> None:
    """Raise `ConfigError` for what is of one model alone."""
    from kvrt.server.fleet.places import read_places

    given = {
        "--lora": bool(config.lora),
        "--batches": config.batches is not None,
        "--kv-events": config.kv_events is not None,
        "--share": wanted.share is not None,
        "--cache-dir": wanted.cache_dir is not None,
        "--draft-model": wanted.draft_model is not None,
        "--tensor-parallel": wanted.tensor_parallel > 1,
        "--pipeline-parallel": wanted.pipeline_parallel > 1,
        "--model-impl transformers": wanted.model_impl == "transformers",
    }
    if config.devices is not None:
        if wanted.backend != "auto" or wanted.device:
            raise ConfigError("--backend and --device name one device, and --devices several")
        read_places(config.devices)
    for name, is_given in given.items():
        if is_given:
            raise ConfigError(f"{name} is for one model", fix="serve that alone, or leave it out")


def _serve_several(
    terminal: Terminal,
    models: tuple[str, ...],
    folder: Path | None,
    config: "ServerConfig",
    base: RuntimeConfig,
    prepared: "Prepared",
) -> None:
    from kvrt.server import serve as server
    from kvrt.server.fleet.naming import Folder, named

    def begun() -> None:
        terminal.note(f"serving at {prepared.url}; Ctrl-C ends it")

    with (
        contextlib.closing(prepared),
        open_beside(config, base) as beside,
    ):
        asyncio.run(
            server.serve_models(
                named(models, base),
                None if folder is None else Folder(folder, base),
                config,
                prepared,
                begun,
                beside,
            )
        )
