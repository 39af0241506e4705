"""``kvrt profile``: what the engine's time goes into, as a trace and as a table."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvrt.errors import ConfigError
from kvrt_cli.keyfile import read_key
from kvrt_cli.naming import TINY, model_name
from kvrt_cli.options import color_option, file_path
from kvrt_cli.options.runtime import model_options, runtime_config
from kvrt_cli.options.sections import INSIDE, OF_A_MODEL, PROFILE, SectionedCommand, refuse_given
from kvrt_cli.profile_server import profile_of
from kvrt_cli.run import open_runtime
from kvrt_cli.terminal import Terminal
from kvrt_cli.tuning.bounds import kind_of, limits_of
from kvrt_cli.tuning.requests import Load, load_of, load_options, read_prompts

if TYPE_CHECKING:
    from kvrt.profiling.recorder import Recording
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
@click.option(
    "--url", metavar="URL", help="Record a server of kvrt that runs: http://127.0.0.1:8000."
)
@click.option(
    "--seconds", type=click.FloatRange(0, 60, min_open=True), default=5.0, show_default=True,
    metavar="X", help="With --url: how long.",
)  # fmt: skip
@click.option(
    "--served", metavar="NAME", help="With --url: which of its models; default: the one it has."
)
@click.option(
    "--key-file", type=file_path, metavar="FILE", help="With --url: has the key of an admin."
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
    url: str | None,
    served: str | None,
    key_file: Path | None,
    seconds: float,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Answer requests, and record what MODEL's engine does meanwhile; or record a server.

    The requests are those of PROMPTS, a file as for kvrt run --prompts, or made of token ids from
    a fixed seed. All come at once. With --url, what a server does in the seconds to come is
    recorded, whoever asks it.

    The trace opens in ui.perfetto.dev and in chrome://tracing: the phases of each step, the life of
    each request (queued, prefill, decode, preempted, fetched), and the KV memory and the queue over
    time. It has the ids of requests and counts of tokens, and nothing of any text. Ctrl-C ends the
    requests, and what was recorded so far is written.
    """
    terminal.quiet = quiet
    context = click.get_current_context()
    if url is not None:
        asked = {*INSIDE, *PROFILE["Requests"], "model", "prompts", "prefix_cache"}
        refuse_given(context, asked, OF_A_MODEL)
        _check_writable(output)
        key = read_key(key_file)
        found, interrupted = profile_of(url, seconds=seconds, served=served, key=key)
        _write(output, found.pop("trace"))
        _tell(terminal, found, f"{found['requests']} requests that ended", output, as_json=as_json)
    else:
        refuse_given(context, {"seconds", "served", "key_file"}, "is of a server: it needs --url")
        interrupted = _in_process(terminal, model, prompts, output, options, as_json=as_json)
    if interrupted:
        raise KeyboardInterrupt


def _in_process(
    terminal: Terminal,
    model: str,
    prompts: Path | None,
    output: Path,
    options: dict[str, Any],
    *,
    as_json: bool,
) -> bool:
    """Of a model that is loaded for it; whether Ctrl-C has ended it."""
    from kvrt.profiling.chrome import chrome
    from kvrt.profiling.told import told
    from kvrt.profiling.totals import Work

    items = read_prompts(prompts)
    config = runtime_config(model, options)
    _check_writable(output)
    with open_runtime(terminal, config) as runtime:
        load = load_of(runtime, items, options)
        if not options["no_warmup"]:
            _answer(runtime, load)
        recording, interrupted = _record(runtime, load)
        work, kv_limit, kind = Work.of(runtime), runtime.stats().cache.limit_bytes, kind_of(runtime)
    _write(output, chrome(recording))
    found = told(recording, work, limits_of(config, kind), kv_limit)
    _tell(terminal, found, load.name, output, as_json=as_json)
    return interrupted


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


def _record(runtime: "Runtime", load: Load) -> "tuple[Recording, bool]":
    """What was seen, and whether Ctrl-C has ended it."""
    from kvrt.profiling.recorder import Recorder

    interrupted = False
    with Recorder(runtime) as recorder:
        try:
            _answer(runtime, load)
        except KeyboardInterrupt:
            interrupted = True
    return recorder.recording, interrupted


def _write(output: Path, trace: dict[str, Any]) -> None:
    with output.open("w", encoding="utf-8") as file:
        json.dump(trace, file, separators=(",", ":"))
        file.write("\n")


def _tell(
    terminal: Terminal, found: dict[str, Any], what: str, output: Path, *, as_json: bool
) -> None:
    if found["lost"]:
        terminal.warn(f"{found['lost']} steps and changes had no room in the trace")
    if as_json:
        terminal.json({"trace": str(output), **found}, indent=2)
        return
    click.echo(f"{found['title']}: {what}\n")
    for line in _table(found):
        click.echo(line)
    if (finding := found["bottleneck"]) is not None:
        click.echo(f"\nbottleneck: {finding['bound']}; {finding['why']}\n  {finding['fix']}")
    terminal.note(f"the trace is {output}: open it in ui.perfetto.dev or chrome://tracing")


def _table(found: dict[str, Any]) -> list[str]:
    lines = [f"{'phase':<20} {'seconds':>9} {'part':>6} {'us a step':>10} {'times':>8}"]
    whole = found["seconds"] or 1.0
    rows = [("step", found["steps"], found["seconds"])]
    rows += [(_indented(each["name"]), each["count"], each["seconds"]) for each in found["phases"]]
    for name, count, seconds in rows:
        each = seconds / max(1, found["steps"]) * 1e6
        lines.append(f"{name:<20} {seconds:>9.4f} {seconds / whole:>6.1%} {each:>10.1f} {count:>8}")
    lines.append(
        f"\n{found['prompt_tokens']} tokens of prompts and {found['answer_tokens']} of answers"
        " computed"
    )
    return lines


def _indented(name: str) -> str:
    outer, _, last = name.rpartition("/")
    return "  " * (1 + outer.count("/") + bool(outer)) + last
