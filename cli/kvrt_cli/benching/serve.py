"""``kvrt bench serve``: a server under load, or a model in this process."""

import asyncio
import contextlib
import dataclasses
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvrt.errors import KvrtError
from kvrt_cli.benching.plans import (
    cost_options,
    data_options,
    load_options,
    plan_of,
    time_above_0,
)
from kvrt_cli.benching.told import told
from kvrt_cli.errors import of_the_system
from kvrt_cli.extras import check_extra
from kvrt_cli.keyfile import read_key
from kvrt_cli.naming import model_name
from kvrt_cli.options import color_option, file_path, named_values
from kvrt_cli.options.runtime import model_options, runtime_config
from kvrt_cli.options.sections import (
    BENCH_SERVE,
    INSIDE,
    OF_A_MODEL,
    SectionedCommand,
    refuse_given,
)
from kvrt_cli.progress import LoadBar
from kvrt_cli.run import open_runtime
from kvrt_cli.terminal import Terminal
from kvrt_cli.tuning.bounds import kind_of, limits_of

if TYPE_CHECKING:
    from kvrt.bench.plan import Plan
    from kvrt.bench.targets import Endpoint
    from kvrt.bench.words import Run
    from kvrt.runtime import Runtime

INTERRUPTED = 128 + signal.SIGINT


@click.command(
    "serve", cls=SectionedCommand, sections=BENCH_SERVE, short_help="A server under load."
)
@click.argument("model", required=False, type=model_name)
@click.option(
    "--url", metavar="URL", help="A server that speaks OpenAI's API: http://127.0.0.1:8000."
)
@click.option(
    "--served", metavar="NAME", help="What requests call the model; default: the first it has."
)
@click.option(
    "--endpoint", type=click.Choice(["completions", "chat"]), default="completions",
    show_default=True, help="Texts that go on, or messages.",
)  # fmt: skip
@click.option("--key-file", type=file_path, metavar="FILE", help="With the key that it wants.")
@click.option(
    "--field", "fields", multiple=True, metavar="NAME=VALUE",
    callback=named_values("temperature=0"),
    help="Another field of each request, as in temperature=0; may be given several times.",
)  # fmt: skip
@click.option(
    "--respect-eos", is_flag=True,
    help="Answers may end before they have all their tokens. Else ignore_eos is asked for, which"
    " not all servers know.",
)  # fmt: skip
@click.option(
    "--timeout", type=time_above_0, default="10m", show_default=True, metavar="TIME",
    help="A request of which nothing comes for so long has failed.",
)  # fmt: skip
@load_options
@data_options
@click.option(
    "-o", "--output", type=file_path, metavar="FILE", help="All that was measured, as JSON."
)
@click.option("--csv", type=file_path, metavar="FILE", help="The requests, a line each.")
@click.option("--html", type=file_path, metavar="FILE", help="A page with plots.")
@click.option("--name", metavar="NAME", help="That the result goes by; default: the model's.")
@cost_options
@model_options(
    text="Keep pages for prompts that begin with the same tokens (default), or not.",
    lasting=False,
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the figures, and errors.")
@color_option
@click.pass_obj
def serve(
    terminal: Terminal,
    /,
    model: str | None,
    url: str | None,
    output: Path | None,
    csv: Path | None,
    html: Path | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Measure a server under load, at --url, or MODEL in this process.

    \b
      kvrt bench serve --url http://127.0.0.1:8000 --clients 8 -o run.json --html run.html
      kvrt bench serve tiny --rate 4 --arrivals bursty --seconds 60s
      kvrt bench serve --url URL --prefixes 4 --turns 3 --cache warm

    \b
    TTFT  time to first token: from sending a request to the first piece of its answer
    TPOT  time per output token, of an answer: (last piece - first) / (tokens - 1)
    ITL   between two pieces of an answer that follow each other
    E2E   from sending a request to the end of its answer

    Ctrl-C ends it and keeps what was measured. kvrt bench compare and kvrt bench gate read what
    --output has written. See docs/bench.md.
    """
    terminal.quiet = quiet
    if (model is None) == (url is None):
        raise click.UsageError("name one thing to measure: a MODEL, or a server with --url")
    files = [each for each in (output, csv, html) if each is not None]
    _check_files(files)
    plan = plan_of(options)
    if url is None:
        run = _inside(terminal, plan, str(model), options)
    else:
        refuse_given(click.get_current_context(), INSIDE, OF_A_MODEL)
        run = _over_http(terminal, plan, url, options)
    from kvrt.bench.advice import advice
    from kvrt.bench.figures import summary

    found = summary(run)
    hints = advice(run)
    _write(run, found, output, csv, html)
    if as_json:
        about = {"name": run.name, "target": run.target, "load": run.load, "data": run.data}
        said = [dataclasses.asdict(each) for each in hints]
        terminal.json({**about, **found, "advice": said}, indent=2)
    else:
        held_back = (f"{each.bottleneck}: {each.told}; try {each.fix}" for each in hints)
        print("\n".join([*told(found), *held_back]))
    for path in files:
        terminal.note(f"written: {path}")
    context = click.get_current_context()
    if run.cut:
        context.exit(INTERRUPTED)
    if not run.good:
        error = next((each.error for each in run.records if each.error), "nothing was asked")
        raise KvrtError(f"no request was answered: {error}")
    if found["requests"]["failed"]:
        terminal.warn(_failures(run))


def _over_http(terminal: Terminal, plan: "Plan", url: str, options: dict[str, Any]) -> "Run":
    check_extra("bench serve", "client")
    from kvrt.bench.http import HttpTarget

    sent = {} if options["respect_eos"] else {"ignore_eos": True}
    key = read_key(options["key_file"])
    names = ("endpoint", "timeout")

    async def main() -> "Run":
        target = HttpTarget(
            url, model=options["served"], key=key, fields={**sent, **options["fields"]},
            **{name: options[name] for name in names},
        )  # fmt: skip
        try:
            return await _measured(terminal, plan, target)
        finally:
            await target.close()

    return asyncio.run(main())


def _inside(terminal: Terminal, plan: "Plan", model: str, options: dict[str, Any]) -> "Run":
    for name in ("served", "key_file", "fields"):
        if options[name]:
            raise click.UsageError(f"--{name.replace('_', '-')} is of a server: it needs --url")
    from kvrt.bench.inside import InsideTarget

    endpoint: Endpoint = options["endpoint"]
    with open_runtime(terminal, runtime_config(model, options)) as runtime:
        limits = _limits(runtime)

        async def main() -> "Run":
            respect_eos = options["respect_eos"]
            target = InsideTarget(
                runtime, endpoint=endpoint, respect_eos=respect_eos, limits=limits
            )
            return await _measured(terminal, plan, target)

        return asyncio.run(main())


def _limits(runtime: "Runtime") -> dict[str, float]:
    """What the device can do, as far as it can measure that, and what a token takes of it."""
    from kvrt.profiling.totals import Work

    found, work = limits_of(runtime.config, kind_of(runtime)), Work.of(runtime)
    known = {
        "read_bytes_per_s": found.read_bytes_per_s,
        "operations_per_s": found.operations_per_s,
        "prompt_token_operations": work.prompt_token_operations,
        "answer_token_operations": work.answer_token_operations,
    }
    return {name: value for name, value in known.items() if value is not None}


async def _measured(terminal: Terminal, plan: "Plan", target: Any) -> "Run":
    """Measure, until it ends or is interrupted; a second Ctrl-C ends the process."""
    from kvrt.bench.plan import Session

    with LoadBar(terminal, plan.requests, plan.seconds) as bar:
        session = Session(plan, target, bar.told)
        loop = asyncio.get_running_loop()

        def stop() -> None:
            loop.remove_signal_handler(signal.SIGINT)
            session.stop()

        with contextlib.suppress(ValueError, RuntimeError):  # not in the main thread
            loop.add_signal_handler(signal.SIGINT, stop)
        try:
            return await session.measure()
        finally:
            with contextlib.suppress(ValueError, RuntimeError):
                loop.remove_signal_handler(signal.SIGINT)


def _check_files(files: list[Path]) -> None:
    """Before anything is measured."""
    if len(set(files)) < len(files):
        raise click.UsageError("--output, --csv and --html are different files")
    for each in files:
        if not each.absolute().parent.is_dir():
            raise click.UsageError(f"{str(each.parent)!r:.200} is no folder")


def _write(
    run: "Run", found: dict[str, Any], output: Path | None, csv: Path | None, html: Path | None
) -> None:
    from kvrt.bench.page import page
    from kvrt.bench.sheets import as_csv
    from kvrt.bench.words import save

    try:
        if output is not None:
            save(run, output, found)
        if csv is not None:
            csv.write_text(as_csv(run), encoding="utf-8")
        if html is not None:
            html.write_text(page(run), encoding="utf-8")
    except OSError as error:
        raise KvrtError(f"the result cannot be written: {of_the_system(error)}") from None


def _failures(run: "Run") -> str:
    errors = [each.error for each in run.records if not each.good]
    return f"{len(errors)} of {len(run.records)} requests failed; the first: {errors[0]}"
