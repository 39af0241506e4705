"""What went wrong, in the words of the command line: a cause, and a fix where one is known."""

import re
from collections.abc import Mapping

import click

from kvrt.errors import (
    BackendUnavailable,
    ConfigError,
    DeviceError,
    KvrtError,
    ModelError,
    RequestError,
    in_one_line,
)
from kvrt_cli.naming import NAME
from kvrt_cli.options.sampling import NAMES

REPORT = "KVRT_DEBUG=1 shows where; please report it"
LONGEST = 600
"""Characters of a line. What is longer comes from some library, and is told to who debugs."""

EXTRA = re.compile(r"Got unexpected extra arguments? \((.*)\)", re.DOTALL)
OPTION = re.compile(r"--?[A-Za-z][\w-]{0,40}", re.ASCII)


def explain(error: BaseException, command: click.Command, hint: str) -> tuple[str, str]:
    """The cause and the fix of what ended a command.

    Args:
        error: it.
        command: whose options the user may know.
        hint: where to look, for bad usage that knows no fix.
    """
    match error:
        case click.ClickException():
            cause, fix = _usage(error, hint)
        case KvrtError():
            names = option_names(command)
            # What is wrong with a model is a field of a file, which may have an option's name.
            cause = str(error) if isinstance(error, ModelError) else as_options(str(error), names)
            fix = as_options(error.fix, names)
            fix = fix or _where_to_look(error, hint)
        case MemoryError():
            cause, fix = "out of memory", "close other programs"
        case OSError():
            cause, fix = of_the_system(error), ""
        case _:
            cause, fix = f"unexpected {in_one_line(error)}", REPORT
    return shortened(cause), fix


def shortened(text: str) -> str:
    """The text with no line that is too long to be read."""
    return "\n".join(
        line if len(line) <= LONGEST else f"{line[:LONGEST]}... (KVRT_DEBUG=1 shows all of it)"
        for line in text.split("\n")
    )


def explain_request(error: KvrtError) -> tuple[str, str]:
    """The same for one request of several. Its own parameters are called as they were given."""
    names = option_names(click.get_current_context().command)
    for name in NAMES:
        names.pop(name, None)
    return shortened(as_options(str(error), names)), as_options(error.fix, names)


def _usage(error: click.ClickException, hint: str) -> tuple[str, str]:
    """Bad usage. A word that may be a prompt is not quoted."""
    message = error.format_message()
    if isinstance(error, click.NoSuchOption) and not OPTION.fullmatch(error.option_name):
        return "no such option", "put -- before a prompt that begins with -"
    if extra := EXTRA.fullmatch(message):
        quoted = f": {extra[1]}" if NAME.fullmatch(extra[1]) else ""
        return f"too many arguments{quoted}", hint
    return message, hint


def of_the_system(error: OSError) -> str:
    """An error of the system with the file's name, unless that is none but a text."""
    name = str(error.filename or "")
    return f"{name}: {error.strerror}" if NAME.fullmatch(name) else error.strerror or str(error)


def _where_to_look(error: KvrtError, hint: str) -> str:
    if isinstance(error, ConfigError | RequestError):
        return hint
    if isinstance(error, BackendUnavailable | DeviceError):
        return "kvrt doctor -v shows what works here"
    return ""


# --- options -------------------------------------------------------------------------------------


def option_names(command: click.Command) -> dict[str, str]:
    """The options of a command, as Python calls them: ``max_model_len`` is ``--max-model-len``."""
    names: dict[str, str] = {}
    for param in command.params:
        for option in (opt for opt in param.opts if opt.startswith("--")):
            names[option[2:].replace("-", "_")] = option
            names.setdefault(param.name or "", option)  # bad_words has one option for each word
    return names


def as_options(text: str, names: Mapping[str, str]) -> str:
    """The text with each parameter called by its option.

    A name such as seed is also a word: it is a parameter where the text begins with "seed is".
    """

    def option(match: re.Match[str]) -> str:
        name = match[0]
        return names[name] if "_" in name or text.startswith(f"{name} is ") else name

    return re.sub(rf"(?<![\w/.'-])(?:{'|'.join(names)})(?![\w/'-])", option, text)
