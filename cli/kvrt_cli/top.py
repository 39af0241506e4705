"""``kvrt top``: who shares a device, and what each one holds."""

import os
import sys

import click

from kvrt.sharing.looking import Seen, shares
from kvrt_cli.extras import check_extra
from kvrt_cli.options import color_option
from kvrt_cli.tenants import COLUMNS, cells_of, title_of
from kvrt_cli.terminal import Terminal


@click.command("top", short_help="Who shares a device, and what each one holds.")
@click.option("--once", is_flag=True, help="Print it once, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print it once, as one JSON object.")
@click.option(
    "--every",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to look.",
)
@color_option
@click.pass_obj
def top(terminal: Terminal, /, once: bool, as_json: bool, every: float) -> None:
    """Show the shares of this user (see --share of kvrt run), and what each model holds.

    On a terminal, a page that keeps up (it needs the extra `top`), with keys for what kvrt ctl asks
    of the model that is marked. Elsewhere, it is printed once.
    """
    if as_json:
        terminal.json({"shares": shares()}, indent=2)
    elif once or not sys.stdout.isatty():
        print(_text(shares()))
    else:
        check_extra("top", "top", "look once, with --once")
        from kvrt_cli.toppage import TopPage

        if not terminal.colored(sys.stdout):
            os.environ["NO_COLOR"] = "1"  # is how textual is told
        TopPage(every).run()


def _text(found: list[Seen]) -> str:
    lines = []
    for share in found:
        lines.append(title_of(share))
        table = [COLUMNS, *(cells_of(tenant, None) for tenant in share["tenants"])]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for cells in table if share["tenants"] else ():
            padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
            lines.append("  " + "  ".join(padded))
    return "\n".join(lines) or "nothing is shared: kvrt run --share NAME begins it"
