"""What an answer may be, as options of a command."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from kvrt.errors import RequestError
from kvrt.structured.constraint import MAX_SOURCE, Constraint
from kvrt_cli.options import apply
from kvrt_cli.stdin import valid_text

KINDS: Mapping[str, Callable[[str], Constraint]] = {
    "json_schema": Constraint.json_schema,
    "regex": Constraint.regex,
    "grammar": Constraint.grammar,
}
"""By the names of the options."""

FILES = ("json_schema", "grammar")

structured_options = apply(
    [
        click.option(
            "--json-schema",
            metavar="FILE",
            help="Answer with JSON that is valid under this JSON Schema. Needs kvrt[structured].",
        ),
        click.option(
            "--regex",
            metavar="PATTERN",
            help="Answer with a text that as a whole matches this pattern.",
        ),
        click.option(
            "--grammar",
            metavar="FILE",
            help="Answer with a text of this grammar: Lark as llguidance has it, or GBNF.",
        ),
    ]
)


def constraint_of(options: Mapping[str, Any]) -> Constraint | None:
    """What the options say of the answer; None: nothing.

    Raises:
        RequestError: more than one is given, a file cannot be read, or it cannot be a constraint.
    """
    given = [name for name in KINDS if options.get(name) is not None]
    if not given:
        return None
    if len(given) > 1:
        names = " and ".join(map(_option, given))
        raise RequestError(
            f"{names} do not go together", param="constraint", fix="give one of them"
        )
    (name,) = given
    said = valid_text(options[name], _option(name))
    return KINDS[name](_read(Path(said), _option(name)) if name in FILES else said)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _read(path: Path, option: str) -> str:
    try:
        with path.expanduser().open("rb") as file:
            return file.read(4 * MAX_SOURCE + 1).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise RequestError(
            f"{option}: the file cannot be read: {why}", param="constraint"
        ) from None
