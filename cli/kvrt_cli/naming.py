"""The MODEL of a command line, and the likeliest mistake: a prompt in its place."""

import re
from pathlib import Path

import click

from kvrt.errors import ModelError

TINY = "tiny"
"""The bundled model."""

NAME = re.compile(r"[\w./~@:+-]{1,200}", re.ASCII)
"""What hub ids and most paths look like. Anything else may be a prompt, and no error quotes it."""


def model_name(value: str) -> str:
    """A model's name as it was given, to be resolved later.

    Raises:
        click.BadParameter: it is empty.
        ModelError: it is no path, and cannot be a hub id.
    """
    if not value:
        raise click.BadParameter(f"it is empty; {TINY} is the bundled model")
    if NAME.fullmatch(value) or _exists(value):
        return value
    raise ModelError(
        f"no such model: the first argument, of {len(value)} characters, is no folder, file or hub"
        " id",
        fix=f'the model comes before the prompt: kvrt run {TINY} "..."',
    )


def _exists(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, RuntimeError):  # too long for a path; nobody's home
        return False
