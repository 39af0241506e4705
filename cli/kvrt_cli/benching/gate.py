"""``kvrt bench gate``: whether a run keeps what was agreed."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvrt.errors import ConfigError
from kvrt_cli.benching.compare import shown, tolerance_option
from kvrt_cli.options import color_option
from kvrt_cli.terminal import Terminal

if TYPE_CHECKING:
    from kvrt.bench.words import Run


@click.command("gate", short_help="Whether a run keeps what was agreed.")
@click.argument("result", type=click.Path(path_type=Path))
@click.option(
    "--slo", "objectives", multiple=True, metavar="FIGURE=BOUND",
    help="At most, or at least where more is better: ttft_p95=500ms, errors=1%,"
    " output_tokens_per_s=100. Several, with commas or by giving it several times.",
)  # fmt: skip
@click.option(
    "--per-request", multiple=True, metavar="TIME=BOUND",
    help="What an answer has to keep to count for goodput: ttft=500ms, tpot=50ms, e2e=10s.",
)  # fmt: skip
@click.option(
    "--baseline", type=click.Path(path_type=Path), metavar="FILE",
    help="A run than which this must not be worse.",
)  # fmt: skip
@tolerance_option
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@color_option
@click.pass_obj
def gate(
    terminal: Terminal,
    /,
    result: Path,
    objectives: tuple[str, ...],
    per_request: tuple[str, ...],
    baseline: Path | None,
    tolerance: float,
    as_json: bool,
) -> None:
    """Whether RESULT, a file as of kvrt bench compare, keeps what was agreed.

    \b
      kvrt bench gate run.json --slo ttft_p95=500ms,errors=1%
      kvrt bench gate run.json --slo goodput=95% --per-request ttft=500ms,tpot=50ms
      kvrt bench gate run.json --baseline before.json --tolerance 15%

    Worse than the baseline is a figure that kvrt bench compare calls worse. The exit status is 0
    if all is kept, 1 if something is not, and 2 if that cannot be said.
    """
    from kvrt.bench.comparing import Objective, compared, measured, read_limits
    from kvrt.bench.others import read_runs
    from kvrt.bench.statistics import FIGURES, Figure

    wanted = [Objective.read(each) for each in _split(objectives)]
    limits = read_limits(_split(per_request))
    if not wanted and baseline is None:
        raise click.UsageError("there is nothing to keep: --slo, or --baseline")
    run = _one(result, read_runs(result))
    if not run.records:
        raise ConfigError(f"{result} has no requests")
    checks = []
    for each in wanted:
        found = measured(run, each, limits)
        figure = each.figure
        told = f"{shown(figure, found)}, {'at least' if figure.higher else 'at most'}"
        checks.append((figure.name, each.kept(found), f"{told} {shown(figure, each.bound)}"))
    if baseline is not None:
        base = _one(baseline, read_runs(baseline))
        for name in FIGURES:
            seen = compared(base, run, Figure.read(name), tolerance)
            if seen.verdict == "unknown":
                continue
            told = f"{shown(seen.figure, seen.other)} after {shown(seen.figure, seen.base)}"
            if seen.low is not None:
                told += f", x{seen.ratio:.2f} [{seen.low:.2f}, {seen.high:.2f}]"
            checks.append((name, seen.verdict != "worse", f"{told}: {seen.verdict}"))
        if len(checks) == len(wanted):
            raise ConfigError(f"{baseline} and {result} have no figure to compare")
    passed = all(kept for _, kept, _ in checks)
    if as_json:
        rows = [{"figure": name, "kept": kept, "told": told} for name, kept, told in checks]
        terminal.json({"passed": passed, "checks": rows}, indent=2)
    else:
        for name, kept, told in checks:
            print(f"{'ok  ' if kept else 'FAIL'} {name}: {told}")
    if not passed:
        click.get_current_context().exit(1)


def _split(texts: tuple[str, ...]) -> list[str]:
    return [part for text in texts for part in text.split(",")]


def _one(path: Path, runs: "list[Run]") -> "Run":
    if len(runs) != 1:
        raise ConfigError(f"{path} has {len(runs)} runs, and one is judged")
    return runs[0]
