"""Options that several commands share.

runtime     of commands that open a runtime; parts of it are in `memory`, `ranks` and `sharing`
sampling, structured   how answers are chosen, and what they are held to
serving     of commands that listen for clients
sections    where each stands in ``--help``
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from kvrt.config import fit_of
from kvrt.errors import ConfigError
from kvrt.spi import DType, KVFormat
from kvrt.units import GIB, parse_bytes
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

file_path = click.Path(path_type=Path, dir_okay=False)
folder_path = click.Path(path_type=Path, file_okay=False)


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


def named_values(example: str, known: Callable[[str], object] = bool) -> Callable[..., Any]:
    """A callback that reads several ``NAME=VALUE``; a VALUE that is not JSON is text.

    Args:
        example: one that is right.
        known: whether a NAME can be one.
    """

    def read(
        context: click.Context, option: click.Parameter, values: tuple[str, ...]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for text in values:
            name, equals, value = valid_text(text, option.opts[0]).partition("=")
            if not equals or not known(name):
                raise click.BadParameter(f"it is NAME=VALUE, as in {example}")
            try:
                found[name] = json.loads(value)
            except (ValueError, RecursionError):
                found[name] = value
        return found

    return read


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

quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print errors alone.")

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
threads_option = click.option(
    "-t", "--threads", type=click.IntRange(1), metavar="N", help="Host threads."
)

OPENING = ("backend", "device", "dtype", "threads", "offline", "revision")
opening_options = apply(
    [
        backend_option,
        device_option,
        dtype_option,
        threads_option,
        offline_option,
        revision_option,
    ]
)
"""For a command that opens a model without KV memory; `OPENING` has their names."""
