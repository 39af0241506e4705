"""Options that several commands share, and how they become a `RuntimeConfig`."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

import click

from kvrt.config import ModelImpl, RuntimeConfig, fit_of
from kvrt.errors import ConfigError
from kvrt.spi import DType, KVFormat
from kvrt.units import GIB, parse_bytes
from kvrt_cli.ranks import RANK_OPTIONS, elsewhere
from kvrt_cli.sharing import share_of
from kvrt_cli.stdin import valid_text
from kvrt_cli.terminal import ColorMode, Terminal

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Function], Function]

DTYPES = ("auto", *get_args(DType))
SHORT_DTYPES = {
    "f32": "float32", "fp32": "float32", "bf16": "bfloat16", "f16": "float16", "fp16": "float16",
}  # fmt: skip
DTYPE_METAVAR = f"[{'|'.join(DTYPES)}]"
KV_FORMATS = ("auto", *get_args(KVFormat))


def size(value: str) -> str:
    """``4GiB``, ``512MiB``, plain bytes, or a share of the device's memory such as ``50%``."""
    try:
        parse_bytes(value, whole=GIB)
    except ConfigError as error:
        raise click.BadParameter(f"{error}: {error.fix}" if error.fix else str(error)) from None
    return value


def dtype(value: str) -> str:
    """A dtype by its full name, or by a usual short one."""
    name = SHORT_DTYPES.get(value, value)
    if name not in DTYPES:
        raise click.BadParameter(f"{value!r} is not one of {', '.join(DTYPES)}")
    return name


def kv_format(value: str) -> str:
    """A KV format by its full name, or by a usual short one; or what is to fit."""
    name = SHORT_DTYPES.get(value, value)
    try:
        fit_of(name)
    except ConfigError:
        known = f"{', '.join(KV_FORMATS)}, fit[:N][:FORMAT]"
        raise click.BadParameter(f"{value!r} is not one of {known}") from None
    return name


def template_variables(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any]:
    """What several ``NAME=VALUE`` say; a VALUE that is not JSON is text."""
    variables: dict[str, Any] = {}
    for text in values:
        name, equals, value = valid_text(text, "--template-var").partition("=")
        if not equals or not name.isidentifier():
            raise click.BadParameter("it is NAME=VALUE, as in enable_thinking=false")
        try:
            variables[name] = json.loads(value)
        except (ValueError, RecursionError):
            variables[name] = value
    return variables


def apply(options: list[Decorator[Any]]) -> Decorator[Any]:
    """One decorator for several options; `--help` lists them in this order."""

    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _set_color(ctx: click.Context, param: click.Parameter, value: ColorMode | None) -> None:
    if value is not None:
        ctx.ensure_object(Terminal).color = value


color_option = click.option(
    "--color",
    type=click.Choice(get_args(ColorMode)),
    expose_value=False,
    is_eager=True,
    callback=_set_color,
    help="Colours: on a terminal unless NO_COLOR is set (auto), always, or never.",
)

backend_option = click.option(
    "--backend",
    metavar="NAME",
    default="auto",
    help="auto, cpu, cuda, rocm, or the name of a plug-in. auto is KVRT_BACKEND, else the"
    " first accelerator that works, else the CPU.",
)
device_option = click.option(
    "--device",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Which of the backend's devices; see kvrt run --list-devices.",
)
kv_dtype_option = click.option(
    "--kv-cache-dtype",
    type=kv_format,
    metavar=f"[{'|'.join(KV_FORMATS)}|fit[:N][:FORMAT]]",
    default="auto",
    help="Of keys and values in the cache; auto: that of the weights. int8 and int4 take a"
    " quarter and an eighth of float32's memory, and a little more, at some loss of"
    " quality; fp8 (E4M3) takes as much as int8, on GPUs that have it. fit: the most exact, down to"
    " int8, in which N texts (1) of --max-model-len tokens fit; fit:N:int4: down to that.",
)
quantize_option = click.option(
    "--quantize",
    type=click.Choice(["int8", "int5", "int4"]),
    help="Make the matrices into codes of so many bits as they are loaded: about half of"
    " bfloat16's memory in int8, at hardly any loss of quality, and a third in int4.",
)
offline_option = click.option(
    "--offline", is_flag=True, help="Use only what is on this machine; download nothing."
)
revision_option = click.option(
    "--revision", metavar="REV", help="Branch, tag or commit of a hub id."
)
dtype_option = click.option(
    "--dtype",
    type=dtype,
    metavar=DTYPE_METAVAR,
    default="auto",
    help="Of the weights; auto: the model's.",
)

runtime_options = apply(
    [
        backend_option,
        device_option,
        kv_dtype_option,
        click.option(
            "--load-format",
            type=click.Choice(["auto", "dummy"]),
            default="auto",
            help="dummy: random weights from config.json alone, for benchmarks.",
        ),
        click.option(
            "--model-impl",
            type=click.Choice(get_args(ModelImpl)),
            default="kvrt",
            show_default=True,
            help="transformers: its own module computes, over kvrt's pages: for architectures that"
            " kvrt does not have, and slower.",
        ),
        quantize_option,
        click.option(
            "--quantized-dir",
            metavar="DIR|auto|none",
            default="auto",
            show_default=True,
            help="Where weights are kept once they are quantised, so that the next start reads"
            " them; auto: ~/.cache/kvrt/weights.",
        ),
        click.option(
            "--offload-experts",
            type=size,
            metavar="SIZE",
            help="Memory for the experts of a mixture (2GiB, 25%): those that were used most of"
            " late are in it, others are read from the model's files when a token chooses them. The"
            " same text, slower. Default: all are in memory.",
        ),
        click.option(
            "--activations",
            type=click.Choice(["int8", "exact"]),
            default="int8",
            show_default=True,
            help="What weights that are codes are multiplied with: activations as codes of 8 bits,"
            " or exactly as they are, which may be slower.",
        ),
        click.option(
            "--max-model-len",
            "--ctx-size",
            type=click.IntRange(2),
            metavar="TOKENS",
            help="Longest prompt and output together; default: the model's own.",
        ),
        click.option(
            "--memory-limit",
            type=size,
            metavar="SIZE",
            help="Weights and KV cache together: 4GiB, 512MiB, 50%. Default: the weights, and for"
            " the cache at most 60 % of what is then free.",
        ),
        click.option(
            "--page-size",
            type=click.IntRange(1),
            default=16,
            show_default=True,
            metavar="TOKENS",
            help="Tokens in a page of the KV cache.",
        ),
        click.option(
            "--max-batch-tokens",
            type=click.IntRange(1),
            default=512,
            show_default=True,
            metavar="TOKENS",
            help="Tokens computed in one step, over all sequences.",
        ),
        click.option(
            "--max-running",
            type=click.IntRange(1),
            default=256,
            show_default=True,
            metavar="N",
            help="Sequences computed together.",
        ),
        click.option(
            "--speculate",
            "speculation",
            metavar="ngram[:K]|mtp[:K]|draft[:K]",
            help="Guess up to K tokens a step (10) from what the text has said before, and verify"
            " them together: the same text, sooner where it repeats itself. mtp: up to K (4) by the"
            " layer that models such as DeepSeek V3 and Qwen3.5 have for it.",
        ),
        click.option(
            "--draft-model",
            metavar="MODEL",
            help="A smaller model with the same tokenizer, which guesses tokens that the model"
            " verifies several at a time: the same text, sooner. --speculate draft:K: at most K"
            " a step (8).",
        ),
        click.option(
            "--max-images",
            type=click.IntRange(0, 1024),
            default=8,
            show_default=True,
            metavar="N",
            help="Images of a prompt, for models that see; 0: their vision tower is not loaded.",
        ),
        *RANK_OPTIONS,
        offline_option,
        revision_option,
        elsewhere,
    ]
)


def runtime_config(model: str, options: Mapping[str, Any]) -> RuntimeConfig:
    """The configuration that the options of ``kvrt run`` or ``kvrt bench`` ask for.

    Raises:
        click.UsageError: two of them do not go together.
    """
    for name in ("offload", "remote_store", "cache_dir"):
        if options.get(name) is not None and not options["prefix_cache"]:
            raise click.UsageError(
                f"--{name.replace('_', '-')} finds pages by their tokens, and the prefix cache is"
                " off: add --prefix-cache"
            )
    return RuntimeConfig(
        model=model,
        backend=options["backend"],
        device=options["device"],
        dtype=options["dtype"],
        kv_cache_dtype=options["kv_cache_dtype"],
        load_format=options["load_format"],
        model_impl=options["model_impl"],
        quantize=options["quantize"],
        quantized_dir=None if options["quantized_dir"] == "none" else options["quantized_dir"],
        offload_experts=options["offload_experts"],
        activations=options["activations"],
        max_model_len=options["max_model_len"],
        memory_limit=options["memory_limit"],
        page_size=options["page_size"],
        max_batch_tokens=options["max_batch_tokens"],
        max_running=options["max_running"],
        speculate=options["speculation"],
        draft_model=options["draft_model"],
        max_images=options["max_images"],
        threads=options["threads"],
        tensor_parallel=options["tensor_parallel"],
        pipeline_parallel=options["pipeline_parallel"],
        nodes=options["nodes"],
        master=options["master"],
        master_key=options["master_key"],
        rank_timeout=options["rank_timeout"],
        offline=options["offline"],
        revision=options["revision"],
        prefix_cache=options["prefix_cache"],
        prefix_cache_policy=options["prefix_cache_policy"],
        prefix_cache_ttl=options.get("prefix_cache_ttl", math.inf),
        offload=options["offload"],
        offload_write=options["offload_write"],
        remote_store=options["remote_store"],
        remote_key=options["remote_key"],
        cache_dir=options.get("cache_dir"),
        preemption=options["preemption"],
        share=share_of(options),
    )
