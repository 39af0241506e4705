"""``kvrt top``: who shares a device, and what each one holds."""

import contextlib
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from kvrt.errors import StoreError
from kvrt.sharing.figures import Figures
from kvrt.sharing.ledger import Row
from kvrt.sharing.share import ledger_folder
from kvrt.sharing.tenant import figures_of
from kvrt.units import format_bytes
from kvrt_cli.options import color_option
from kvrt_cli.terminal import Terminal

COLUMNS = (
    "tenant", "process", "held", "wants", "guaranteed", "cached", "running", "waiting", "tokens/s",
    "hits", "preempted", "weight", "priority",
)  # fmt: skip


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
            total, tenants = figures_of(path)
            name, _, device = path.name.rpartition(".")
            found.append(
                {
                    "share": name,
                    "device": device,
                    "size": total,
                    "tenants": [_tenant(row, figures) for row, figures in tenants],
                }
            )
    return found


def _tenant(row: Row, figures: Figures) -> dict[str, Any]:
    return {
        "tenant": row.name,
        "process": row.pid,
        "held": row.claim.held,
        "wants": row.claim.want,
        "guaranteed": row.claim.guarantee,
        "lends": row.claim.lends,
        "weight": row.claim.weight,
        "priority": row.claim.priority,
        **asdict(figures),
    }


def _text(found: list[dict[str, Any]], rates: Mapping[tuple[str, int], float] = {}) -> str:
    lines = []
    for share in found:
        held = sum(tenant["held"] for tenant in share["tenants"])
        size = format_bytes(share["size"])
        lines.append(f"{share['share']} on {share['device']}: {format_bytes(held)} of {size} held")
        table = [COLUMNS, *(_cells(share["share"], tenant, rates) for tenant in share["tenants"])]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for cells in table if share["tenants"] else ():
            padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
            lines.append("  " + "  ".join(padded))
    return "\n".join(lines) or "nothing is shared: kvrt run --share NAME begins it"


def _cells(
    share: str, tenant: dict[str, Any], rates: Mapping[tuple[str, int], float]
) -> tuple[str, ...]:
    rate = rates.get((share, tenant["process"]))
    hits = f"{tenant['reused'] / tenant['prompt']:.0%}" if tenant["prompt"] else "-"
    return (
        tenant["tenant"][:24], str(tenant["process"]), format_bytes(tenant["held"]),
        format_bytes(tenant["wants"]),
        format_bytes(tenant["guaranteed"]) + (" lent" if tenant["lends"] else ""),
        format_bytes(tenant["cached"]), str(tenant["running"]), str(tenant["waiting"]),
        "-" if rate is None else f"{rate:.0f}", hits, str(tenant["preempted"]),
        f"{tenant['weight']:g}", str(tenant["priority"]),
    )  # fmt: skip


def _rates(
    before: list[dict[str, Any]], after: list[dict[str, Any]], seconds: float
) -> dict[tuple[str, int], float]:
    """Tokens a second of each process since it was looked at last."""

    def tokens(found: list[dict[str, Any]]) -> dict[tuple[str, int], int]:
        return {
            (share["share"], tenant["process"]): tenant["tokens"]
            for share in found
            for tenant in share["tenants"]
        }

    then = tokens(before)
    return {
        key: (count - then[key]) / seconds for key, count in tokens(after).items() if key in then
    }


def _watch(terminal: Terminal, every: float) -> None:
    from rich.live import Live
    from rich.text import Text

    before, then = shares(), time.monotonic()
    text = _text(before)
    with Live(console=terminal.console(sys.stdout), screen=True, auto_refresh=False) as live:
        while True:
            live.update(Text(text), refresh=True)
            time.sleep(every)
            after, now = shares(), time.monotonic()
            text = _text(after, _rates(before, after, now - then))
            before, then = after, now
