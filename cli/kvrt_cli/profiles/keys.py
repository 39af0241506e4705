"""What a profile and the environment call the parameters of a command."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import cache

import click

from kvrt.config import RuntimeConfig
from kvrt_cli.options.sharing import TERMS

WORD = re.compile(r"\[?([A-Z][A-Z0-9_]*)\]?(?:\.\.\.)?")
"""How an argument is written that is one word."""

SECRET = re.compile(r"(^|-)(api-key|password|secret|token)($|-)")
PASSWORD = re.compile(r"(?<=://)([^/@\s:]*):[^/@\s]*(?=@)")
HIDDEN = "***"


def names_of(param: click.Parameter) -> list[str]:
    """What a profile may call a parameter, what it should first: ``--ctx-size`` is ``ctx-size``,
    and the argument ``[MODEL]...`` is ``model``."""
    if isinstance(param, click.Argument):
        word = WORD.fullmatch(param.make_metavar(click.Context(click.Command(""))))
        return [(word[1] if word else param.name or "").lower().replace("_", "-")]
    long = [option[2:] for option in param.opts if option.startswith("--")]
    return long or [param.opts[0].lstrip("-")]


def key_of(param: click.Parameter) -> str:
    return names_of(param)[0]


def settable(command: click.Command) -> list[click.Parameter]:
    """The parameters that the command is given; not --help, nor how it is printed."""
    return [param for param in command.params if param.expose_value and param.name]


def keys_of(command: click.Command) -> dict[str, click.Parameter]:
    """The parameters of a command by each of their names. An option goes before an argument."""
    ordered = sorted(settable(command), key=lambda param: isinstance(param, click.Option))
    return {name: param for param in ordered for name in names_of(param)}


@cache
def _of_runtimes() -> frozenset[str]:
    names = {field.name for field in fields(RuntimeConfig)} | set(TERMS)
    names.remove("seed")  # which is that of a request, on command lines
    return frozenset(name.replace("_", "-") for name in names)


def of_runtime(param: click.Parameter) -> bool:
    """Whether a parameter says how a runtime is set up, in whatever command."""
    return not _of_runtimes().isdisjoint(names_of(param))


def has_runtime(command: click.Command) -> bool:
    """Whether a command opens a device, so that settings of runtimes are about it."""
    return any(param.name == "backend" for param in command.params)


def variable(words: Sequence[str], param: click.Parameter) -> str:
    """The variable of the environment for an option: ``KVRT_BATCH_RUN_PAGE_SIZE``."""
    return "_".join(["KVRT", *words, key_of(param)]).upper().replace("-", "_")


def variables_of(param: click.Parameter) -> list[str]:
    """The variables of a parameter; the first that is set counts."""
    return [param.envvar] if isinstance(param.envvar, str) else list(param.envvar or ())


def variables(command: click.Command) -> dict[str, click.Parameter]:
    """The variables that a command's options have, and those of the commands in it."""
    found: dict[str, click.Parameter] = {}
    for param in command.params:
        found |= dict.fromkeys(variables_of(param), param)
    for below in children(command).values():
        found |= variables(below)
    return found


def nearest(name: str, known: Iterable[str]) -> str:
    """The one that somebody who wrote `name` may have meant; empty: none is like it."""
    plain = {other.lower().replace("_", "-"): other for other in known}
    found = get_close_matches(name.lower().replace("_", "-"), plain, n=1)
    return plain[found[0]] if found else ""


def is_secret(param: click.Parameter) -> bool:
    """Whether nobody is to read the parameter's value. A file that has a secret is none."""
    if isinstance(param.type, click.Path | click.File) or "FILE" in (param.metavar or ""):
        return False
    return bool(getattr(param, "hide_input", False) or SECRET.search(key_of(param)))


def without_passwords(text: str) -> str:
    """The text with those in URLs hidden."""
    return PASSWORD.sub(rf"\1:{HIDDEN}", text)


def children(command: click.Command) -> Mapping[str, click.Command]:
    """The commands of a command."""
    return command.commands if isinstance(command, click.Group) else {}
