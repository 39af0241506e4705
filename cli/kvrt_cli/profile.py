"""``kvrt profile``: what the engine's time goes into, as a trace and as a table."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvrt.errors import ConfigError
from kvrt_cli.naming import TINY, model_name
from kvrt_cli.options import color_option, file_path
from kvrt_cli.options.runtime import model_options, runtime_config
from kvrt_cli.options.sections import PROFILE, SectionedCommand
from kvrt_cli.run import open_runtime
from kvrt_cli.terminal import Terminal
from kvrt_cli.tuning.bounds import kind_of, limits_of
from kvrt_cli.tuning.requests import Load, load_of, load_options, read_prompts

if TYPE_CHECKING:
    from kvrt.profiling.bottleneck import Finding
    from kvrt.profiling.recorder import Recording
    from kvrt.profiling.totals import Limits, Totals, Work
    from kvrt.runtime import Runtime

SHORT_HELP = "What the engine's time goes into: a trace for Perfetto, and a table."


@click.command("profile", cls=SectionedCommand, sections=PROFILE, short_help=SHORT_HELP)
@click.argument("model", default=TINY, type=model_name)
@click.argument("prompts", required=False, type=file_path)
@click.option(
    "-o",
    "--output",
    type=file_path,
    default=Path("trace.json"),
    show_default=True,
    metavar="FILE",
    help="Where the trace goes.",
)
@load_options
@click.option("--no-warmup", is_flag=True, help="Record the first run, too, and no second one.")
@model_options(
    prefix_cache=False,
    text="Let prompts begin with pages that an earlier run has computed, or not (default).",
    lasting=False,
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, not a table.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the table, and errors.")
@color_option
@click.pass_obj
def profile(
    terminal: Terminal,
    /,
    model: str,
    prompts: Path | None,
    output: Path,
    no_warmup: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Answer requests, and record what MODEL's engine does meanwhile.

    The requests are those of PROMPTS, a file as for kvrt run --prompts, or made of token ids from
    a fixed seed. All come at once.

    The trace opens in ui.perfetto.dev and in chrome://tracing: the phases of each step, the life of
    each request (queued, prefill, decode, preempted, fetched), and the KV memory and the queue over
    time. It has the ids of requests and counts of tokens, and nothing of any text. Ctrl-C ends the
    requests, and what was recorded so far is written.
    """
    terminal.quiet = quiet
    items = read_prompts(prompts)
    config = runtime_config(model, options)
    _check_writable(output)
    with open_runtime(terminal, config) as runtime:
        load = load_of(runtime, items, options)
        if not no_warmup:
            _answer(runtime, load)
        seen = _record(runtime, load)
    _write(output, seen.recording)
    _tell(terminal, seen, limits_of(config, seen.kind), load, output, as_json=as_json)
    if seen.interrupted:
        raise KeyboardInterrupt


def _check_writable(output: Path) -> None:
    """Before anything is measured."""
    try:
        with output.open("a"):
            pass
    except OSError as error:
        raise ConfigError(
            f"the trace cannot be written to {str(output)[:200]!r}: {error.strerror}",
            fix="name a file in a folder that is yours, with -o",
        ) from None


def _answer(runtime: "Runtime", load: Load) -> None:
    for result in runtime.generate(load.prompts, load.params):
        if result.error is not None:
            raise result.error


@dataclass(frozen=True, slots=True)
class _Seen:
    """A run.

    Args:
        kv_limit: bytes that KV memory could take.
        kind: what the weights were multiplied as.
        interrupted: by Ctrl-C.
    """

    recording: "Recording"
    work: "Work"
    kv_limit: int
    kind: str
    interrupted: bool


def _record(runtime: "Runtime", load: Load) -> _Seen:
    from kvrt.profiling.recorder import Recorder
    from kvrt.profiling.totals import Work

    interrupted = False
    with Recorder(runtime) as recorder:
        try:
            _answer(runtime, load)
        except KeyboardInterrupt:
            interrupted = True
    limit = runtime.stats().cache.limit_bytes
    return _Seen(recorder.recording, Work.of(runtime), limit, kind_of(runtime), interrupted)


def _write(output: Path, recording: "Recording") -> None:
    from kvrt.profiling.chrome import chrome

    with output.open("w", encoding="utf-8") as file:
        json.dump(chrome(recording), file, separators=(",", ":"))
        file.write("\n")


def _tell(
    terminal: Terminal, seen: _Seen, limits: "Limits", load: Load, output: Path, *, as_json: bool
) -> None:
    from kvrt.profiling.bottleneck import bottleneck
    from kvrt.profiling.totals import measured, totals

    recording = seen.recording
    found = totals(recording.steps)
    finding = None
    if found.seconds:
        facts = measured(recording, seen.work, limits, seen.kv_limit)
        finding = bottleneck(facts, "throughput")
    if recording.lost:
        terminal.warn(f"{recording.lost} steps and changes had no room in the trace")
    if as_json:
        terminal.json(_facts(found, finding, output), indent=2)
        return
    click.echo(f"{recording.title}: {load.name}\n")
    for line in _table(found):
        click.echo(line)
    if finding is not None:
        click.echo(f"\nbottleneck: {finding.bound}; {finding.why}\n  {finding.fix}")
    terminal.note(f"the trace is {output}: open it in ui.perfetto.dev or chrome://tracing")


def _table(found: "Totals") -> list[str]:
    lines = [f"{'phase':<20} {'seconds':>9} {'part':>6} {'us a step':>10} {'times':>8}"]
    whole = found.seconds or 1.0
    rows = [("step", found.steps, found.seconds)]
    rows += [(_indented(each.name), each.count, each.seconds) for each in found.phases]
    for name, count, seconds in rows:
        each = seconds / max(1, found.steps) * 1e6
        lines.append(f"{name:<20} {seconds:>9.4f} {seconds / whole:>6.1%} {each:>10.1f} {count:>8}")
    lines.append(
        f"\n{found.prompt_tokens} tokens of prompts and {found.answer_tokens} of answers computed"
    )
    return lines


def _indented(name: str) -> str:
    outer, _, last = name.rpartition("/")
    return "  " * (1 + outer.count("/") + bool(outer)) + last


def _facts(found: "Totals", finding: "Finding | None", output: Path) -> dict[str, Any]:
    return {
        "trace": str(output),
        "steps": found.steps,
        "seconds": found.seconds,
        "computing_seconds": found.computing,
        "prompt_tokens": found.prompt_tokens,
        "answer_tokens": found.answer_tokens,
        "phases": [
            {"name": each.name, "count": each.count, "seconds": each.seconds}
            for each in found.phases
        ],
        "bottleneck": None if finding is None else finding_json(finding),
    }


def finding_json(finding: "Finding") -> dict[str, Any]:
    return {
        "bound": finding.bound,
        "parts": dict(finding.parts),
        "bandwidth": finding.bandwidth,
        "arithmetic": finding.arithmetic,
        "why": finding.why,
        "fix": finding.fix,
    }
