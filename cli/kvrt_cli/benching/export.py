"""``kvrt bench export``: results for programs that keep those of many runs."""

from importlib import import_module
from pathlib import Path

import click

from kvrt_cli.extras import check_extra
from kvrt_cli.options import color_option
from kvrt_cli.terminal import Terminal

PROGRAMS = ("mlflow", "wandb", "otel")


@click.command("export", short_help="Results for MLflow, Weights & Biases, OpenTelemetry.")
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE..."
)
@click.option("--to", "program", required=True, type=click.Choice(PROGRAMS), help="Who takes them.")
@click.option(
    "--at", metavar="URL|DIR",
    help="MLflow's tracking URI; OTLP's endpoint; a folder that keeps it for `wandb sync`. Default:"
    " what these programs' own variables say.",
)  # fmt: skip
@click.option(
    "--project", default="kvrt-bench", show_default=True, metavar="NAME",
    help="MLflow's experiment; the project of Weights & Biases; OpenTelemetry's service.",
)  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Print errors alone.")
@color_option
@click.pass_obj
def export(
    terminal: Terminal,
    /,
    files: tuple[Path, ...],
    program: str,
    at: str | None,
    project: str,
    quiet: bool,
) -> None:
    """Hand each FILE, as of kvrt bench compare, to a program that keeps results of many runs.

    \b
      kvrt bench export run.json --to mlflow --at sqlite:///mlflow.db
      kvrt bench export run.json --to wandb --at ./wandb
      kvrt bench export run.json --to otel --at http://127.0.0.1:4318

    Keys and passwords are in these programs' own variables and files. See docs/bench.md.
    """
    terminal.quiet = quiet
    check_extra("bench export", program)
    from kvrt.bench.others import read_runs

    taking = import_module(f"kvrt.bench.exporting.{program}")
    for run in [run for file in files for run in read_runs(file)]:
        terminal.note(f"{run.name}: {taking.export(run, project, at)}")
