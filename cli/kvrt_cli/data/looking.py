"""``kvrt data stats``: what is in a set."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from kvrt_cli.data.common import json_option, reading, rejected_option, set_argument
from kvrt_cli.extras import check_extra
from kvrt_cli.options import color_option, quiet_option
from kvrt_cli.terminal import Terminal

COLUMNS = ("mean", "min", "p5", "p50", "p95", "p99", "max")


@click.command("stats", short_help="What is in a set.")
@set_argument
@rejected_option
@json_option
@quiet_option
@color_option
@click.pass_obj
def stats(
    terminal: Terminal, /, set: Path, rejected: Path | None, as_json: bool, quiet: bool
) -> None:
    """Print how many rows SET has, of which shapes, and how their scores are spread.

    Quantiles are right to 1 %.
    """
    terminal.quiet = quiet
    check_extra("data", "data")
    from kvrt.data.stats import statistics_of

    with reading(terminal, set, rejected) as (reader, rows):
        found = statistics_of(rows).as_json()
    found["bad"] = reader.bad
    if as_json:
        terminal.json(found)
        return
    terminal.say(in_words(found))


def in_words(found: Mapping[str, Any]) -> str:
    """Statistics for people."""
    shapes = ", ".join(f"{count} {shape}" for shape, count in found["shapes"].items())
    lines = [
        f"{found['rows']} rows ({shapes or 'none'}), {found['with_answer']} with an answer,"
        f" {found['bytes']} bytes"
    ]
    if found["scores"]:
        width = max(map(len, found["scores"]))
        lines.append("  ".join(["".ljust(width), *(name.rjust(9) for name in COLUMNS)]))
    for name, score in found["scores"].items():
        cells = [f"{score[column]:.4g}".rjust(9) for column in COLUMNS if column in score]
        lines.append("  ".join([name.ljust(width), *cells]))
    for name, counts in found["texts"].items():
        lines.append(f"{name}: " + ", ".join(f"{text} {count}" for text, count in counts.items()))
    return "\n".join(lines) + "\n"
