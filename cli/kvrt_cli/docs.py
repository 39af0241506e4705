"""Writes the option lists of docs/cli.md from the commands themselves.

    python -m kvrt_cli.docs docs/cli.md

The file keeps its own words; what stands between two marks is replaced:

    <!-- options of run -->
    <!-- end -->
"""

import re
import sys
from pathlib import Path

import click

from kvrt_cli.main import cli

MARKED = re.compile(r"(<!-- options of ([\w -]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_options(text: str) -> str:
    """The text with every marked list replaced by that of the command as it is now.

    Raises:
        KeyError: there is no command of a name that the text marks.
    """
    return MARKED.sub(lambda match: f"{match[1]}{options(match[2])}{match[3]}", text)


def options(name: str) -> str:
    """A Markdown table of a command's options; ``kvrt`` is the group itself, and ``batch run`` a
    command of a command."""
    ctx = click.Context(cli, info_name="kvrt", **cli.context_settings)
    command: click.Command = cli
    for word in name.split() if name != "kvrt" else ():
        assert isinstance(command, click.Group), "only groups have commands"
        command = command.commands[word]
        ctx = click.Context(command, ctx, word)
    records = [parameter.get_help_record(ctx) for parameter in command.get_params(ctx)]
    rows = [f"| `{_cell(names)}` | {_cell(text)} |\n" for names, text in filter(None, records)]
    return "".join(["| option | meaning |\n", "| --- | --- |\n", *rows])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main(path: Path) -> None:
    path.write_text(with_options(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
