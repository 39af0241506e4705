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
from kvrt_cli.llama_words import GIVEN, other_options
from kvrt_cli.naming import model_name
from kvrt_cli.options import apply, color_option, size
from kvrt_cli.run import open_runtime
from kvrt_cli.serve import spare_collections
from kvrt_cli.terminal import Terminal

if TYPE_CHECKING:
    from kvrt.server.beside import Beside
    from kvrt.server.config import ServerConfig
    from kvrt.server.llama.settings import Face

SHORT_HELP = "llama.cpp's server, by its command line and routes, with kvrt in it."

AUTO_SLOTS = 32
"""Where nothing is said: so many answers at once."""

KV_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "q8_0": "int8", "q4_0": "int4"}
"""Formats of the cache, by what llama.cpp calls those that take about as much memory."""

OTHER_KV_TYPES = {"q4_1": "q4_0", "iq4_nl": "q4_0", "q5_0": "q8_0", "q5_1": "q8_0"}
"""Those that there are not, and what comes nearest."""

DRAFTING = {"none": None, "ngram-simple": "ngram", "ngram-map-k": "ngram", "ngram-map-k4v": "ngram",
            "ngram-mod": "ngram", "ngram-cache": "ngram", "draft-mtp": "mtp",
            "draft-simple": "draft"}  # fmt: skip
"""Ways to guess tokens, by what llama.cpp calls those that are most alike."""


def _env(name: str) -> str:
    return f"LLAMA_ARG_{name}"


def _file(option: str, path: Path | None) -> str | None:
    """What a file says that an option names."""
    try:
        return None if path is None else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{option}: it cannot be read: {type(error).__name__}") from None


FILE = click.Path(path_type=Path, dir_okay=False, exists=True)

model_options = apply(
    [
        click.option(
            "-m", "--model", type=model_name, envvar=_env("MODEL"), metavar="FILE",
            help="A GGUF file, or a folder in the Hugging Face layout.",
        ),
        click.option(
            "-hf", "-hfr", "--hf-repo", type=model_name, envvar=_env("HF_REPO"),
            metavar="OWNER/NAME[:QUANT]", help="A model of the hub, in the place of -m.",
        ),
        click.option(
            "-a", "--alias", envvar=_env("ALIAS"), metavar="NAME[,NAME]",
            help="What clients are told that it is called; default: the name of its file.",
        ),
        click.option(
            "-c", "--ctx-size", type=click.IntRange(0), default=0, envvar=_env("CTX_SIZE"),
            metavar="N", help="Tokens of context of all slots together: with -np N, and without"
            " -kvu, each has an N-th. 0: the model's own, each. Memory is taken as it is needed.",
        ),
        click.option(
            "-np", "--parallel", type=click.IntRange(-1), default=-1, envvar=_env("N_PARALLEL"),
            metavar="N", help=f"Slots: answers at once. -1: {AUTO_SLOTS}.",
        ),
        click.option(
            "-kvu/-no-kvu", "--kv-unified/--no-kv-unified", default=None,
            help="A slot may have all of the context.",
        ),
        click.option(
            "-ub", "--ubatch-size", type=click.IntRange(1), default=512, envvar=_env("UBATCH"),
            show_default=True, metavar="N", help="Tokens computed in one step.",
        ),
        click.option(
            "-t", "--threads", type=int, default=-1, envvar=_env("THREADS"), metavar="N",
            help="Host threads; -1: all.",
        ),
        click.option(
            "-ngl", "--gpu-layers", "--n-gpu-layers", default="auto", envvar=_env("N_GPU_LAYERS"),
            metavar="N|auto|all", help="0: the CPU. All else: all layers on the first device that"
            " works.",
        ),
        click.option(
            "-ctk", "--cache-type-k", envvar=_env("CACHE_TYPE_K"), metavar="TYPE",
            type=click.Choice([*KV_TYPES, *OTHER_KV_TYPES]),
            help="Of the cache: f32, f16, bf16, q8_0 (kvrt's int8) or q4_0 (int4).",
        ),
        click.option(
            "-ctv", "--cache-type-v", envvar=_env("CACHE_TYPE_V"), metavar="TYPE",
            type=click.Choice([*KV_TYPES, *OTHER_KV_TYPES]), help="The same as -ctk.",
        ),
        click.option(
            "--memory-limit", type=size, metavar="SIZE",
            help="kvrt's own: weights and KV cache together, as of kvrt serve.",
        ),
        click.option(
            "--cache-prompt/--no-cache-prompt", default=True, envvar=_env("CACHE_PROMPT"),
            help="Find pages of prompts again.",
        ),
        click.option("--offline", is_flag=True, envvar=_env("OFFLINE"), help="Download nothing."),
        click.option(
            "--lora", multiple=True, metavar="PATH[,PATH]", help="An adapter of the model.",
        ),
        click.option(
            "--lora-scaled", multiple=True, metavar="PATH:SCALE[,...]",
            help="The same; SCALE is 1 (on) or 0 (off).",
        ),
        click.option(
            "--lora-init-without-apply", is_flag=True,
            help="Adapters are off until /lora-adapters or a request turns one on.",
        ),
        click.option(
            "-md", "--spec-draft-model", "--model-draft", "draft_model",
            envvar=_env("SPEC_DRAFT_MODEL"), metavar="MODEL",
            help="A smaller model that guesses tokens: folder, GGUF file or hub id.",
        ),
        click.option(
            "--spec-type", envvar=_env("SPEC_TYPE"), metavar="TYPE",
            help=f"Guess tokens: {', '.join(DRAFTING)}.",
        ),
        click.option("--spec-default", is_flag=True, help="The same as --spec-type ngram-simple."),
        click.option(
            "--spec-draft-n-max", "--draft-max", "--draft-n", "--draft", "draft_max",
            type=click.IntRange(1, 64), envvar=_env("SPEC_DRAFT_N_MAX"), metavar="N",
            help="Tokens guessed in a step, at most.",
        ),
    ]
)  # fmt: skip
"""The model, and what computes it."""

sampling_options = apply(
    [
        click.option(
            "-n", "--predict", "--n-predict", type=click.IntRange(-1), default=-1,
            envvar=_env("N_PREDICT"), metavar="N", help="Tokens of an answer; -1: any number.",
        ),
        click.option("-s", "--seed", type=int, default=-1, metavar="N", help="-1: random."),
        click.option(
            "--temp", "--temperature", "temperature", type=float, default=0.8, show_default=True,
            envvar=_env("TEMPERATURE"), metavar="X", help="0: the likeliest token.",
        ),
        click.option("--top-k", type=int, default=40, show_default=True, envvar=_env("TOP_K"),
                     metavar="N", help="0: off."),
        click.option("--top-p", type=float, default=0.95, show_default=True, envvar=_env("TOP_P"),
                     metavar="X", help="1: off."),
        click.option("--min-p", type=float, default=0.05, show_default=True, envvar=_env("MIN_P"),
                     metavar="X", help="0: off."),
        click.option("--repeat-penalty", type=float, default=1.0, show_default=True,
                     envvar=_env("REPEAT_PENALTY"), metavar="X", help="1: off."),
        click.option("--presence-penalty", type=float, default=0.0, show_default=True,
                     envvar=_env("PRESENCE_PENALTY"), metavar="X", help="0: off."),
        click.option("--frequency-penalty", type=float, default=0.0, show_default=True,
                     envvar=_env("FREQUENCY_PENALTY"), metavar="X", help="0: off."),
        click.option("--ignore-eos", is_flag=True, help="Go on past the model's end."),
        click.option("-r", "--reverse-prompt", "stop", multiple=True, metavar="TEXT",
                     help="Stop at TEXT."),
        click.option("--grammar", metavar="GBNF", help="Hold answers to a grammar."),
        click.option("--grammar-file", type=FILE, metavar="FILE", help="The same, of a file."),
        click.option("-j", "--json-schema", metavar="SCHEMA", help="Hold answers to a schema."),
        click.option("-jf", "--json-schema-file", type=FILE, metavar="FILE",
                     help="The same, of a file."),
    ]
)  # fmt: skip
"""What requests that say nothing are answered with."""

server_options = apply(
    [
        click.option("--host", default="127.0.0.1", show_default=True, envvar=_env("HOST"),
                     help="Address to listen at."),
        click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True,
                     envvar=_env("PORT"), help="0: any that is free."),
        click.option("--api-key", envvar="LLAMA_API_KEY", metavar="KEY[,KEY]",
                     help="Clients need one of these. Needed at an address that others reach."),
        click.option("--api-key-file", type=FILE, envvar=_env("API_KEY_FILE"), metavar="FILE",
                     help="The same, a key a line."),
        click.option("--without-keys", is_flag=True, help="kvrt's own: listen at an address that"
                     " others reach, although nobody needs a key."),
        click.option("--metrics", is_flag=True, envvar=_env("ENDPOINT_METRICS"),
                     help="Offer /metrics, in llama-server's names."),
        click.option("--props", is_flag=True, envvar=_env("ENDPOINT_PROPS"),
                     help="Take POST /props, which changes nothing."),
        click.option("--slots/--no-slots", default=True, envvar=_env("ENDPOINT_SLOTS"),
                     help="Offer /slots."),
        click.option("--ui/--no-ui", "--webui/--no-webui", default=True, envvar=_env("UI"),
                     help="Offer kvrt's page at /."),
        click.option("--embedding", "--embeddings", "embedding", is_flag=True,
                     envvar=_env("EMBEDDINGS"), help="Make vectors alone; -m is a folder."),
        click.option("--pooling", type=click.Choice(["none", "mean", "cls", "last", "rank"]),
                     envvar=_env("POOLING"), help="Of vectors; default: as the model's files say."
                     " rank: as --reranking."),
        click.option("--embd-normalize", type=int, default=2, metavar="N",
                     help="Of vectors: 2, to the length 1, or -1, not at all."),
        click.option("--rerank", "--reranking", "reranking", is_flag=True,
                     envvar=_env("RERANKING"), help="Sort texts alone; -m is a folder."),
        click.option("--chat-template", metavar="JINJA", envvar=_env("CHAT_TEMPLATE"),
                     help="In place of the model's."),
        click.option("--chat-template-file", type=FILE, envvar=_env("CHAT_TEMPLATE_FILE"),
                     metavar="FILE", help="The same, of a file."),
        click.option("--chat-template-kwargs", metavar="JSON",
                     envvar=_env("CHAT_TEMPLATE_KWARGS"), help="Variables of it."),
        click.option("-q", "--quiet", is_flag=True, help="kvrt's own: print errors alone."),
    ]
)  # fmt: skip
"""The server, and its routes."""


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
