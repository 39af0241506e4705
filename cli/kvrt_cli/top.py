"""``kvrt top``: who shares a device, and what each one holds."""

import contextlib
import sys
import time
from typing import Any

import click

from kvrt.errors import StoreError
from kvrt.sharing.share import ledger_folder
from kvrt.sharing.tenant import tenants_of
from kvrt.units import format_bytes
from kvrt_cli.options import color_option
from kvrt_cli.terminal import Terminal

COLUMNS = ("tenant", "process", "held", "wants", "guaranteed", "weight", "priority")


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

    Until Ctrl-C, on a terminal; elsewhere it is printed once.
    """
    if as_json:
        terminal.json({"shares": shares()}, indent=2)
    elif once or not sys.stdout.isatty():
        print(_text(shares()))
    else:
        _watch(terminal, every)


def shares() -> list[dict[str, Any]]:
    """Every share of this user that can be read; sizes in bytes."""
    found = []
    for path in sorted(ledger_folder().iterdir()):
        with contextlib.suppress(StoreError):
            total, rows = tenants_of(path)
            tenants = [
                {
                    "tenant": row.name,
                    "process": row.pid,
                    "held": row.claim.held,
                    "wants": row.claim.want,
                    "guaranteed": row.claim.guarantee,
                    "lends": row.claim.lends,
                    "weight": row.claim.weight,
                    "priority": row.claim.priority,
                }
                for row in rows
            ]
            name, _, device = path.name.rpartition(".")
            found.append({"share": name, "device": device, "size": total, "tenants": tenants})
    return found


def _text(found: list[dict[str, Any]]) -> str:
    lines = []
    for share in found:
        held = sum(tenant["held"] for tenant in share["tenants"])
        size = format_bytes(share["size"])
        lines.append(f"{share['share']} on {share['device']}: {format_bytes(held)} of {size} held")
        if share["tenants"]:
            lines.append("  " + "".join(f"{title:>14}" for title in COLUMNS))
        for tenant in share["tenants"]:
            guaranteed = format_bytes(tenant["guaranteed"]) + (" lent" if tenant["lends"] else "")
            cells = (
                tenant["tenant"][:13], tenant["process"], format_bytes(tenant["held"]),
                format_bytes(tenant["wants"]), guaranteed, f"{tenant['weight']:g}",
                tenant["priority"],
            )  # fmt: skip
            lines.append("  " + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines) or "nothing is shared: kvrt run --share NAME begins it"


def _watch(terminal: Terminal, every: float) -> None:
    from rich.live import Live
    from rich.text import Text

    with Live(console=terminal.console(sys.stdout), screen=True, auto_refresh=False) as live:
        while True:
            live.update(Text(_text(shares())), refresh=True)
            time.sleep(every)
