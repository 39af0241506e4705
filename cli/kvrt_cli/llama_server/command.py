"""``kvrt llama-server``: llama.cpp's server, by its command line and routes, with kvrt in it."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvrt.config import RuntimeConfig
from kvrt_cli.beside import same_device
from kvrt_cli.extras import check_extra
from kvrt_cli.llama_server.options import (
    AUTO_SLOTS,
    DRAFTING,
    KV_TYPES,
    OTHER_KV_TYPES,
    model_options,
    sampling_options,
    server_options,
)
from kvrt_cli.llama_server.words import GIVEN, other_options
from kvrt_cli.options import color_option
from kvrt_cli.run import open_runtime
from kvrt_cli.serve import spare_collections
from kvrt_cli.terminal import Terminal

if TYPE_CHECKING:
    from kvrt.server.beside import Beside
    from kvrt.server.config import ServerConfig
    from kvrt.server.llama.settings import Face

SHORT_HELP = "llama.cpp's server, by its command line and routes, with kvrt in it."


@click.command("llama-server", short_help=SHORT_HELP)
@model_options
@sampling_options
@server_options
@other_options
@color_option
@click.pass_context
def llama_server(ctx: click.Context, /, quiet: bool, **options: Any) -> None:
    """llama.cpp's server, by its command line and its routes, with kvrt in it.

    Clients of llama-server find what they ask for at http://HOST:PORT; docs/llama-server.md has
    the routes, and what is different. All words of llama-server's command line are taken: those
    that kvrt has nothing for are passed over, which is said, or refused by name. It runs until
    SIGTERM or Ctrl-C.
    """
    terminal: Terminal = ctx.obj
    terminal.quiet = quiet
    check_extra("serve")
    from kvrt.server import serve as server
    from kvrt.server.llama.keys import GivenKeys

    if given := ctx.meta.get(GIVEN):
        terminal.note(f"passed over, as they mean nothing to kvrt: {', '.join(given)}")
    model = options["model"] or options["hf_repo"]
    if model is None:
        raise click.UsageError("which model? -m FILE, or -hf OWNER/NAME:QUANT")
    keys = keys_of(options)
    face = face_of(options, model, guarded=bool(keys))
    config = server_config(options, model, guarded=bool(keys))
    wanted = runtime_config_of(options, model, face)
    prepared = server.prepare(config, GivenKeys(keys) if keys else None)
    if options["chat_template"] is not None:
        prepared = replace(prepared, template=options["chat_template"])
    spare_collections()

    def begun() -> None:
        terminal.note(f"serving at {prepared.url}; Ctrl-C ends it")

    with contextlib.closing(prepared), vectors_of(options, wanted) as beside:
        if beside is not None:
            asyncio.run(server.serve_vectors(config, prepared, begun, beside, face))
            return
        with open_runtime(terminal, wanted) as runtime:
            for each in face.lora:
                runtime.load_adapter(each.name, each.path)
            asyncio.run(server.serve(runtime, config, prepared, begun, face=face))


def keys_of(options: dict[str, Any]) -> list[str]:
    """Of ``--api-key`` and ``--api-key-file``."""
    lines = _file("--api-key-file", options["api_key_file"]) or ""
    keys = [*(options["api_key"] or "").split(","), *map(str.strip, lines.splitlines())]
    return [key for key in keys if key]


def face_of(options: dict[str, Any], model: str, *, guarded: bool) -> "Face":
    """How the face is set up.

    Raises:
        click.UsageError: two options do not go together, or one is not what it may be.
    """
    from kvrt.server.llama.settings import Face

    names = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty",
             "frequency_penalty", "seed", "ignore_eos", "stop", "metrics", "props")  # fmt: skip
    grammar = options["grammar"] or _file("--grammar-file", options["grammar_file"]) or ""
    schema = options["json_schema"] or _file("--json-schema-file", options["json_schema_file"])
    if grammar and schema:
        raise click.UsageError("--grammar and --json-schema do not go together")
    face = Face(
        model_path=model,
        slots=options["parallel"] if options["parallel"] > 0 else AUTO_SLOTS,
        n_predict=options["predict"],
        grammar=grammar,
        json_schema=schema or "",
        lora=_loras(options),
        template_kwargs=_variables(options["chat_template_kwargs"]),
        slots_shown=options["slots"],
        page=options["ui"],
        guarded=guarded,
        **{name: options[name] for name in names},
    )
    face.check()
    return face


def _loras(options: dict[str, Any]) -> Any:
    from kvrt.server.llama.settings import Lora

    scale = 0.0 if options["lora_init_without_apply"] else 1.0
    found = [Lora(path, scale) for each in options["lora"] for path in each.split(",") if path]
    for each in options["lora_scaled"]:
        for pair in filter(None, each.split(",")):
            path, _, number = pair.rpartition(":")
            try:
                own = float(number)
            except ValueError:
                path = ""
            if not path:
                raise click.UsageError("--lora-scaled is PATH:SCALE")
            found.append(Lora(path, 0.0 if options["lora_init_without_apply"] else own))
    if len({each.path for each in found}) < len(found):
        raise click.UsageError("--lora names a file twice")
    return tuple(found)


def _variables(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise click.UsageError('--chat-template-kwargs is a JSON object, as {"name": true}')
    return found


def server_config(options: dict[str, Any], model: str, *, guarded: bool) -> "ServerConfig":
    """How the server is set up."""
    from kvrt.server.config import ANY_NAME, ServerConfig

    if options["host"].endswith(".sock"):
        raise click.UsageError("--host: the server listens at addresses, not at files")
    names = [name for name in (options["alias"] or "").split(",") if name]
    own = Path(model).expanduser().name if Path(model).expanduser().exists() else model
    template = options["chat_template_file"]
    if options["chat_template"] is not None and template is not None:
        raise click.UsageError("--chat-template and --chat-template-file do not go together")
    if "{" not in (options["chat_template"] or "{"):
        raise click.UsageError("--chat-template is a text in Jinja; there are none by names")
    return ServerConfig(
        host=options["host"],
        port=options["port"],
        alias=(*(names or [own]), ANY_NAME),
        without_keys=guarded or options["without_keys"],
        chat_template=None if template is None else str(template),
    )


@contextlib.contextmanager
def vectors_of(options: dict[str, Any], wanted: RuntimeConfig) -> "Iterator[Beside | None]":
    """What makes vectors or sorts texts, if that is all that is wanted; closed in the end.

    Raises:
        click.UsageError: something is asked for that there is not.
    """
    from kvrt.server.beside import Beside

    pooling = options["pooling"]
    ranks = options["reranking"] or pooling == "rank"
    if not (ranks or options["embedding"]):
        yield None
        return
    if Path(wanted.model).expanduser().is_file():
        raise click.UsageError(
            "vectors and scores are made by models in the Hugging Face layout: -m names their"
            " folder, not a GGUF file"
        )
    if pooling == "none":
        raise click.UsageError("--pooling none is not offered: a text has one vector")
    if options["embd_normalize"] not in (-1, 2):
        raise click.UsageError("--embd-normalize is 2, to the length 1, or -1, not at all")
    device = same_device(wanted)
    if ranks:
        from kvrt.embedding.reranker import Reranker

        with Reranker(wanted.model, **device) as reranker:
            yield Beside(reranker=reranker)
        return
    from kvrt.embedding.embedder import Embedder

    normalize = False if options["embd_normalize"] == -1 else None
    with Embedder(wanted.model, pooling=pooling, normalize=normalize, **device) as embedder:
        yield Beside(embedder)


def runtime_config_of(options: dict[str, Any], model: str, face: "Face") -> RuntimeConfig:
    """What computes the answers.

    Raises:
        click.UsageError: something is asked for that there is not.
    """
    context = options["ctx_size"]
    if context and options["parallel"] > 1 and not options["kv_unified"]:
        context = max(2, context // options["parallel"])
    return RuntimeConfig(
        model=model,
        backend="cpu" if options["gpu_layers"] == "0" else "auto",
        threads=options["threads"] if options["threads"] > 0 else None,
        kv_cache_dtype=_kv_type(options["cache_type_k"], options["cache_type_v"]),
        max_model_len=context or None,
        memory_limit=options["memory_limit"],
        max_batch_tokens=options["ubatch_size"],
        max_running=face.slots,
        prefix_cache=options["cache_prompt"],
        speculate=_speculation(options),
        draft_model=options["draft_model"],
        offline=options["offline"],
    )


def _kv_type(keys: str | None, values: str | None) -> str:
    wanted = {each for each in (keys, values) if each is not None}
    if not wanted:
        return "auto"
    if len(wanted) > 1:
        raise click.UsageError("--cache-type-k and --cache-type-v: both are of one type here")
    (name,) = wanted
    if name in OTHER_KV_TYPES:
        raise click.UsageError(f"--cache-type-k {name} is not offered: {OTHER_KV_TYPES[name]} is")
    return KV_TYPES[name]


def _speculation(options: dict[str, Any]) -> str | None:
    names = (options["spec_type"] or ("ngram-simple" if options["spec_default"] else "")).split(",")
    kinds = []
    for name in filter(None, names):
        if name not in DRAFTING:
            raise click.UsageError(f"--spec-type: there is {', '.join(DRAFTING)}")
        kinds.append(DRAFTING[name])
    wanted = {kind for kind in kinds if kind is not None}
    if options["draft_model"] is not None:
        wanted.add("draft")
    if len(wanted) > 1:
        raise click.UsageError("--spec-type: tokens are guessed in one way at a time")
    if wanted == {"draft"} and options["draft_model"] is None:
        raise click.UsageError("--spec-type draft-simple needs the model that guesses: -md MODEL")
    if not wanted:
        return None
    (kind,) = wanted
    most = options["draft_max"]
    return kind if most is None else f"{kind}:{most}"


def _file(option: str, path: Path | None) -> str | None:
    """What a file says that an option names."""
    try:
        return None if path is None else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{option}: it cannot be read: {type(error).__name__}") from None
