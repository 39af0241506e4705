"""``kvrt bench compare``: runs side by side."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvrt_cli.benching.told import ms, number
from kvrt_cli.options import color_option
from kvrt_cli.terminal import Terminal

if TYPE_CHECKING:
    from kvrt.bench.comparing import Compared
    from kvrt.bench.statistics import Figure
    from kvrt.bench.words import Run


def share(value: str) -> float:
    """``10%`` or ``0.1``."""
    text = value.removesuffix("%")
    try:
        found = float(text) / (100 if value.endswith("%") else 1)
    except ValueError:
        found = math.nan
    if not 0 <= found <= 1:
        raise click.BadParameter(f"{value!r:.60} is not a share such as 10% or 0.1")
    return found


tolerance_option = click.option(
    "--tolerance",
    type=share,
    default="10%",
    show_default=True,
    metavar="SHARE",
    help="Changes of so much count as none: machines drift by more than what is drawn shows.",
)


@click.command("compare", short_help="Runs side by side.")
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE..."
)
@click.option(
    "--figure", "names", multiple=True, metavar="NAME",
    help="Compare this one, such as ttft_p99 or output_tokens_per_s; may be given several times.",
)  # fmt: skip
@tolerance_option
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@color_option
@click.pass_obj
def compare(
    terminal: Terminal,
    /,
    files: tuple[Path, ...],
    names: tuple[str, ...],
    tolerance: float,
    as_json: bool,
) -> None:
    """Runs side by side: each FILE is one that kvrt bench serve -o, guidellm (JSON) or aiperf (its
    folder) has written; the first one is what the others are compared with.

    Behind each ratio is where 95 % of what might have come is, by drawing requests anew, and a
    verdict: better or worse if all of that is beyond the tolerance, same if all is within it.
    """
    from kvrt.bench.comparing import compared
    from kvrt.bench.others import read_runs
    from kvrt.bench.statistics import FIGURES, Figure

    figures = [Figure.read(name) for name in names or FIGURES]
    runs = [run for file in files for run in read_runs(file)]
    if len(runs) < 2:
        raise click.UsageError("there is one run, and nothing to compare it with")
    base, *others = runs
    found = [[compared(base, each, figure, tolerance) for each in others] for figure in figures]
    if as_json:
        terminal.json(_as_json(runs, figures, found), indent=2)
        return
    print("\n".join(_lines(runs, figures, found)))
    for run in runs:
        if run.made_by in ("guidellm", "aiperf"):
            terminal.note(f"{run.name} is of {run.made_by}, which tells of no pieces: no ITL")


def _lines(
    runs: "Sequence[Run]", figures: "Sequence[Figure]", found: "Sequence[Sequence[Compared]]"
) -> list[str]:
    """A Markdown table."""
    head = ["figure", *(run.name for run in runs)]
    rows = [head, ["---", *("--:" for _ in runs)]]
    for figure, row in zip(figures, found, strict=True):
        rows.append([titled(figure), shown(figure, row[0].base), *map(_cell, row)])
    return ["| " + " | ".join(row) + " |" for row in rows]


def titled(figure: "Figure") -> str:
    return f"{figure.name} (ms)" if figure.unit == "s" else figure.name


def shown(figure: "Figure", value: float | None) -> str:
    """A value in the figure's unit."""
    if value is None:
        return "-"
    if figure.unit == "%":
        return f"{value:.2%}"
    return ms(value) if figure.unit == "s" else number(value)


def _cell(each: "Compared") -> str:
    value = shown(each.figure, each.other)
    if each.low is None or each.ratio is None:
        return f"{value}, {each.verdict}"
    return f"{value}, x{each.ratio:.2f} [{each.low:.2f}, {each.high:.2f}] {each.verdict}"


def _as_json(
    runs: "Sequence[Run]", figures: "Sequence[Figure]", found: "Sequence[Sequence[Compared]]"
) -> dict[str, Any]:
    return {
        "runs": [run.name for run in runs],
        "figures": {
            figure.name: {
                "base": row[0].base,
                "others": [
                    {"value": each.other, "ratio": each.ratio, "low": each.low, "high": each.high,
                     "verdict": each.verdict}
                    for each in row
                ],
            }
            for figure, row in zip(figures, found, strict=True)
        },
    }  # fmt: skip
