"""``kvrt usage``: what the keys of a server have taken."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import click

from kvrt.server.tenants.ledger import Wanted, read_only
from kvrt.server.tenants.reports import as_csv, as_json, is_day, rows
from kvrt_cli.options import color_option, file_path
from kvrt_cli.terminal import Terminal

COLUMNS = ("day", "workspace", "key", "model", "requests", "prompt", "cached", "generated")
TEXTS = 4
"""The first columns; numbers follow."""


class Day(click.ParamType):  # type: ignore[type-arg]
    """Such as 2026-11-27."""

    name = "day"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not is_day(value):
            self.fail("it is no day such as 2026-11-27", param, ctx)
        return str(value)


@click.command("usage", short_help="What the keys of a server have taken.")
@click.argument("file", type=file_path)
@click.option("--since", type=Day(), metavar="DAY", help="Of this day (UTC) and later.")
@click.option("--until", type=Day(), metavar="DAY", help="Of this day and before.")
@click.option("--workspace", metavar="NAME", help="Of this one alone.")
@click.option("--requests", is_flag=True, help="Each request, instead of what a day came to.")
@click.option("--json", "as_lines", is_flag=True, help="As JSON, an object a line.")
@click.option("--csv", "as_table", is_flag=True, help="As CSV.")
@color_option
@click.pass_obj
def usage(
    terminal: Terminal,
    /,
    file: Path,
    since: str | None,
    until: str | None,
    workspace: str | None,
    requests: bool,
    as_lines: bool,
    as_table: bool,
) -> None:
    """Show what is in FILE, which kvrt serve --usage writes, also while it does.

    For each day of UTC, key and model: requests, and tokens of prompts, of these found in the
    cache, and of answers.
    """
    if as_lines and as_table:
        raise click.UsageError("--json and --csv are two things")
    if requests and not (as_lines or as_table):
        raise click.UsageError("--requests is for --json or --csv")
    detail = "requests" if requests else "days"
    with contextlib.closing(read_only(file)) as sql:
        found = rows(sql, detail, Wanted(since, until, workspace))  # type: ignore[arg-type]
        if as_table or as_lines:
            sys.stdout.writelines(as_csv(detail, found) if as_table else as_json(found))  # type: ignore[arg-type]
            return
        listed = [COLUMNS, *(tuple(map(str, row.values())) for row in found)]
    widths = [max(map(len, column)) for column in zip(*listed, strict=True)]
    for row in listed:
        texts, numbers = row[:TEXTS], row[TEXTS:]
        cells = [
            *(text.ljust(width) for text, width in zip(texts, widths, strict=False)),
            *(one.rjust(width) for one, width in zip(numbers, widths[TEXTS:], strict=True)),
        ]
        print("  ".join(cells))
