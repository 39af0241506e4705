"""Words of llama-server's command line that kvrt has something for."""

from pathlib import Path

import click

from kvrt_cli.naming import model_name
from kvrt_cli.options import apply, size

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
