"""``kvrt tune``: the settings that are fastest for a goal, found by measuring."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from kvrt.config import RuntimeConfig
from kvrt.errors import ConfigError
from kvrt.profiling.bottleneck import Goal, bottleneck
from kvrt.profiling.search import Knob, Search, Setting
from kvrt.profiling.slo import Objective, objectives
from kvrt_cli.naming import TINY, model_name
from kvrt_cli.options import color_option, file_path
from kvrt_cli.options.runtime import model_options, runtime_config
from kvrt_cli.options.sections import TUNE, SectionedCommand
from kvrt_cli.progress import BenchBar
from kvrt_cli.terminal import Terminal
from kvrt_cli.tuning.bounds import kind_of, limits_of
from kvrt_cli.tuning.requests import load_of, load_options, read_prompts
from kvrt_cli.tuning.result import Tuned, facts, lines
from kvrt_cli.tuning.trials import Trials

if TYPE_CHECKING:
    from kvrt.profiling.bottleneck import Finding

KNOBS = ("threads", "max-batch-tokens", "speculate", "kv-cache-dtype", "page-size")
"""What may be searched, by the names of the options; those that tell most come first."""

BATCH_TOKENS = (64, 128, 256, 512, 1024, 2048)
PAGE_SIZES = (8, 16, 32, 64)
SPECULATION = ("ngram", "ngram:4")
FEWER_BITS = ("fp8", "int8", "int4")


class _TimeIsUp(Exception):
    """`--minutes` have passed."""


def knob_names(value: str) -> tuple[str, ...]:
    """Some of `KNOBS`, with commas between."""
    names = value.split(",")
    for name in names:
        if name not in KNOBS:
            raise click.BadParameter(f"{name[:60]!r} is not one of {', '.join(KNOBS)}")
    return tuple(name for name in KNOBS if name in names)


def slo(value: str) -> tuple[Objective, ...]:
    """See `kvrt.profiling.slo`."""
    try:
        return objectives(value)
    except ConfigError as error:
        raise click.BadParameter(f"{error}: {error.fix}") from None


SHORT_HELP = "Which settings are fastest here for a goal, by measurement."


@click.command("tune", cls=SectionedCommand, sections=TUNE, short_help=SHORT_HELP)
@click.argument("model", default=TINY, type=model_name)
@click.argument("prompts", required=False, type=file_path)
@click.option(
    "--goal",
    type=click.Choice(get_args(Goal)),
    default="throughput",
    show_default=True,
    help="Tokens per second; the median time to the first token; or that to the last.",
)
@click.option(
    "--slo",
    type=slo,
    metavar="TERM,...",
    default=None,
    help="What answers must keep to, as in ttft_p95=300ms,tpot_p50=50ms,e2e_p99=10s: a setting"
    " that misses it is worth less, the more it misses.",
)
@click.option(
    "--knobs",
    type=knob_names,
    metavar="NAME,...",
    default=",".join(KNOBS),
    show_default=True,
    help="What to search.",
)
@click.option(
    "--runs",
    type=click.IntRange(1, 100_000),
    default=50,
    show_default=True,
    metavar="N",
    help="Answer all requests so often, at most.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(0.01, 10_000),
    metavar="N",
    help="Stop after so long, with the best so far.",
)
@click.option(
    "--allow-inexact",
    is_flag=True,
    help="Try KV formats of fewer bits, too, and settings whose answers differ.",
)
@load_options
@model_options(
    prefix_cache=False,
    text="Let prompts begin with pages that an earlier run has computed, or not (default): every"
    " run has the same prompts.",
    lasting=False,
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the result, and errors.")
@color_option
@click.pass_obj
def tune(
    terminal: Terminal,
    /,
    model: str,
    prompts: Path | None,
    goal: Goal,
    slo: tuple[Objective, ...] | None,
    knobs: tuple[str, ...],
    runs: int,
    minutes: float | None,
    allow_inexact: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Measure which settings are fastest for MODEL here, and print what to set and why.

    The requests are those of PROMPTS, a file as for kvrt run --prompts, or made of token ids from
    a fixed seed; all come at once. What the options say is the default that the others are compared
    with. A difference within the noise of the machine is said to be none.

    Answers stay the same: KV formats of fewer bits are tried with --allow-inexact only, and a
    setting that changes an answer is refused, where the device computes the same bits whatever
    the batch is. What speculation is worth depends on the texts, so that it is tried with PROMPTS
    only. Ctrl-C prints the best so far.
    """
    terminal.quiet = quiet
    items = read_prompts(prompts)
    config = runtime_config(model, options)
    searched = _knobs(config, knobs, made=items is None, inexact=allow_inexact)
    if not searched:
        raise click.UsageError(
            "nothing to search: speculate needs PROMPTS, and kv-cache-dtype --allow-inexact"
        )
    want = _Want(goal, slo or (), runs, None if minutes is None else 60 * minutes)
    fields = [each.name for each in searched]
    named = ""

    def load(runtime: Any) -> Any:
        nonlocal named
        found = load_of(runtime, items, options)
        named = found.name
        return found

    with Trials(config, fields, load, exact=not allow_inexact) as trials:
        search, why = _search(terminal, trials, searched, want)
        finding = None if why == "interrupted" else _finding(trials, search.best, goal)
    result = Tuned(config, goal, want.slo, named, fields, search, trials.runs, finding, why)
    if as_json:
        terminal.json(facts(result), indent=2)
    else:
        for line in lines(result, holds=trials.holds, inexact=allow_inexact):
            click.echo(line)
    if why == "interrupted":
        raise KeyboardInterrupt


def _knobs(config: RuntimeConfig, names: Sequence[str], *, made: bool, inexact: bool) -> list[Knob]:
    """What is searched: fields of `RuntimeConfig`, with the value that it has first.

    Args:
        made: the prompts are no texts.
        inexact: answers may differ.
    """
    from kvrt.config import Environment
    from kvrt.registry import open_device
    from kvrt.spi import DeviceOptions

    backend = Environment().backend_for(config.backend)
    device = open_device(backend, config.device, DeviceOptions(threads=config.threads))
    formats = device.info.kv_formats
    device.close()
    processors = os.cpu_count() or 1
    values: Mapping[str, Sequence[Any]] = {
        "threads": [count for count in (1, processors // 4, processors // 2) if count],
        "max_batch_tokens": BATCH_TOKENS,
        "speculate": () if made or config.draft_model is not None else SPECULATION,
        "kv_cache_dtype": [name for name in FEWER_BITS if name in formats] if inexact else (),
        "page_size": PAGE_SIZES,
    }
    found = []
    for name in names:
        field = name.replace("-", "_")
        default = getattr(config, field)
        if others := [value for value in dict.fromkeys(values[field]) if value != default]:
            found.append(Knob(field, (default, *others)))
    return found


@dataclass(frozen=True, slots=True)
class _Want:
    """What is searched for.

    Args:
        seconds: the search may take; None: as long as it takes.
    """

    goal: Goal
    slo: Sequence[Objective]
    runs: int
    seconds: float | None


def _search(
    terminal: Terminal, trials: Trials, knobs: Sequence[Knob], want: _Want
) -> tuple[Search, str]:
    """The search, and why it ended before it was done; empty: it was."""
    bar = BenchBar(terminal, want.runs)
    started = time.monotonic()

    def measure(setting: Setting) -> float:
        if want.seconds is not None and time.monotonic() - started > want.seconds and trials.runs:
            raise _TimeIsUp
        differing = zip(knobs, setting, strict=True)
        shown = ", ".join(f"{k.name} {value}" for k, value in differing if value != k.values[0])
        bar.begin(shown or "default")
        try:
            return trials.measure(setting).score(want.goal, want.slo)
        finally:
            bar.end()

    search = Search(knobs, measure, want.runs)
    try:
        search.run()
    except KeyboardInterrupt:
        if not trials.runs:
            raise
        return search, "interrupted"
    except _TimeIsUp:
        return search, "time is up"
    finally:
        bar.hide()
    return search, ""


def _finding(trials: Trials, setting: Setting, goal: Goal) -> "Finding":
    """What bounds the best setting: one more run, which is recorded."""
    from kvrt.profiling.recorder import Recorder
    from kvrt.profiling.totals import Work, measured

    runtime = trials.runtime(setting)
    with Recorder(runtime) as recorder:
        trials.measure(setting)
    work, limit = Work.of(runtime), runtime.stats().cache.limit_bytes
    limits = limits_of(trials.config(setting), kind_of(runtime))
    return bottleneck(measured(recorder.recording, work, limits, limit), goal)
