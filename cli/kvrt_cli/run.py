"""``kvrt run``: a model answers."""

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvrt.config import RuntimeConfig
from kvrt.errors import RequestError
from kvrt.sampling import SamplingParams
from kvrt.units import format_bytes
from kvrt_cli.answer import Style, answer
from kvrt_cli.answers import answer_all
from kvrt_cli.asking import asking
from kvrt_cli.errors import of_the_system
from kvrt_cli.naming import TINY, model_name
from kvrt_cli.options import color_option, named_values
from kvrt_cli.options.runtime import model_options, runtime_config
from kvrt_cli.options.sampling import asked, sampling_options
from kvrt_cli.options.sections import RUN, SectionedCommand
from kvrt_cli.options.structured import structured_options
from kvrt_cli.progress import loading_bar
from kvrt_cli.prompts import read_items
from kvrt_cli.repl import Repl
from kvrt_cli.stdin import DASH, read_prompt, read_stdin, valid_text
from kvrt_cli.terminal import Terminal

if TYPE_CHECKING:
    from kvrt.runtime import Runtime

TINY_PROMPT = 'def read_lines(path):\n    """'

SAVING_S = 3600.0
"""At the end, saving to --cache-dir may take so long: the user can see it, and stop it."""

SAVING_NOTED_S = 1.0
"""It is said to go on if it takes longer than this."""

ADAPTER = "adapter"
"""What the one that is asked for is called."""

SHORT_HELP = "A model answers a prompt, a file of prompts, or you in a conversation."


def sampling_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling parameters that were asked for; see `asked`.

    Raises:
        RequestError: one cannot be.
    """
    wishes = asked(options)
    SamplingParams(**wishes)
    return wishes


@click.command(
    "run", cls=SectionedCommand, sections=RUN, settled=sampling_of, short_help=SHORT_HELP
)
@click.argument("model", required=False, type=model_name)
@click.argument("prompt", nargs=-1)
@click.option(
    "--prompts",
    metavar="FILE",
    help="Answer every line of FILE (- is standard input) in one continuous batch. A line is plain"
    " text or a JSON object with prompt, messages or token_ids, perhaps id, and sampling"
    " parameters of its own. Results are JSON lines in the order of the file.",
)
@click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="An image that the PROMPT is about, for a model that sees; may be given several times."
    " PNG, JPEG, WebP, GIF or BMP.",
)
@click.option("-s", "--system", metavar="TEXT", help="The system message of a conversation.")
@click.option(
    "--chat/--no-chat",
    default=None,
    help="Put the prompt through the model's chat template, or not; default: if it has one.",
)
@click.option(
    "--template-var",
    "variables",
    multiple=True,
    callback=named_values("enable_thinking=false", str.isidentifier),
    metavar="NAME=VALUE",
    help="A variable of the chat template, as in enable_thinking=false; may be given several times."
    " VALUE is JSON, or else text.",
)
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="A LoRA adapter for the model, a folder as PEFT saves it or a GGUF file: the answers are"
    " those of the model with it merged in.",
)
@sampling_options
@structured_options
@click.option("--logprobs", type=int, metavar="N", help="With --json or --prompts: each token's"
              " log-probability, and those of the N likeliest.")  # fmt: skip
@model_options()
@click.option("--list-devices", is_flag=True, help="List the devices kvrt could use, and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, at the end.")
@click.option("--no-stream", is_flag=True, help="Print the answer when it is complete.")
@click.option("-v", "--verbose", is_flag=True, help="End with statistics, on standard error.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the answer, and errors.")
@color_option
@click.pass_obj
def run(
    terminal: Terminal,
    /,
    model: str | None,
    prompt: tuple[str, ...],
    prompts: str | None,
    **options: Any,
) -> None:
    """A model answers.

    MODEL is the directory of a Hugging Face checkpoint, a GGUF file, a hub id such as owner/name or
    owner/name:Q4_K_M, or tiny, the bundled model, which is also what no MODEL means.

    The PROMPT comes from the arguments, from standard input if that is a pipe or a file (or if
    PROMPT is -), or from both: standard input first, then a newline, then the arguments. Without
    any, on a terminal, a model with a chat template begins a conversation (/? lists its commands).

    The answer goes to standard output, everything else to standard error. An answer ends with a
    newline.
    """
    terminal.quiet = options["quiet"]
    if options["list_devices"]:
        from kvrt_cli.devices import list_devices

        list_devices(terminal, as_json=options["as_json"])
        return
    wishes = sampling_of(options)  # bad values are refused before a model is loaded
    _check_usage(prompt, prompts, wishes, as_json=options["as_json"])
    if options["images"] and prompts is not None:
        raise click.UsageError("--image goes with a PROMPT, not with --prompts")
    name = TINY if model is None else model
    config = runtime_config(name, options)
    style = Style(not options["no_stream"], options["as_json"], options["verbose"])
    items = read_items(_read_file(prompts, terminal)) if prompts is not None else None
    text = read_prompt(prompt, terminal) if items is None else None
    if items is None and text is None and name != TINY and not _can_converse(style):
        raise _no_prompt("this is not a terminal to have a conversation at")
    system = valid_text(options["system"], "--system") if options["system"] is not None else None
    with open_runtime(terminal, config) as runtime:
        if options["adapter"] is not None:
            runtime.load_adapter(ADAPTER, options["adapter"])
        how = asking(
            runtime,
            wishes,
            chat=options["chat"],
            system=system,
            variables=options["variables"],
            adapter=None if options["adapter"] is None else ADAPTER,
        )
        if items is not None:
            if answer_all(terminal, runtime, how, items, verbose=style.verbose):
                click.get_current_context().exit(1)
            return
        if text is None and options["images"]:
            raise _no_prompt("an image alone is no question")
        if text is None and how.chat and _can_converse(style):
            Repl(terminal, runtime, how, style).run()
            return
        if text is None:
            text = _default_prompt(name, terminal)
        whole = how.illustrated(text, options["images"])
        answer(terminal, runtime, *how.prepare(whole), style, how.adapter)


@contextmanager
def open_runtime(terminal: Terminal, config: RuntimeConfig) -> Iterator["Runtime"]:
    """The runtime; says on stderr what it is, and shows how far loading is."""
    from kvrt.runtime import Runtime

    with loading_bar(terminal) as progress:
        runtime = Runtime(config=config, progress=progress)
    try:
        model, info = runtime.model, runtime.device_info
        terminal.note(
            f"{model.name} ({model.spec.architecture}, {model.dtype},"
            f" {format_bytes(model.weight_bytes)}; KV in {runtime.cache.layouts[0].format})"
            f" on {info.backend}:{info.index} {info.name}"
        )
        if model.path.is_file() and model.path.name not in model.name:
            terminal.note(f"its GGUF file is {model.path}")
        for note in (*info.notes, *model.notes):
            terminal.note(note)
        yield runtime
    finally:
        _close(terminal, runtime)


def _close(terminal: Terminal, runtime: "Runtime") -> None:
    folder = runtime.config.cache_dir
    if folder is None:
        runtime.close()
        return
    text = f"saving cached pages in {folder}; Ctrl-C stops that, and what is saved stays"
    note = threading.Timer(SAVING_NOTED_S, terminal.note, [text])
    note.start()
    try:
        runtime.close(SAVING_S)
    finally:
        note.cancel()


def _check_usage(
    prompt: Sequence[str], prompts: str | None, wishes: dict[str, Any], *, as_json: bool
) -> None:
    if prompts is not None and prompt:
        raise click.UsageError("give either a PROMPT or --prompts, not both")
    if "logprobs" in wishes and not (as_json or prompts is not None):
        raise click.UsageError("--logprobs needs --json or --prompts, where it can be shown")


def _read_file(name: str, terminal: Terminal) -> bytes:
    if name == DASH:
        return read_stdin(terminal)
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise click.UsageError(f"--prompts: {of_the_system(error)}") from None


def _can_converse(style: Style) -> bool:
    terminals = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    return terminals and not style.as_json


def _default_prompt(name: str, terminal: Terminal) -> str:
    """What the bundled model continues when nothing was asked, so that it can be seen at work."""
    if name != TINY:
        raise _no_prompt("without a chat template there is no conversation to begin")
    terminal.note('no prompt was given, so tiny continues this; yours: kvrt run tiny "your text"')
    # On a terminal the answer goes on where the prompt ends.
    if not terminal.quiet:
        click.echo(TINY_PROMPT, err=True, nl=not sys.stdout.isatty())
    return TINY_PROMPT


def _no_prompt(why: str) -> RequestError:
    return RequestError(
        f"no prompt was given, and {why}",
        param="prompt",
        fix='give one, as in kvrt run MODEL "a prompt", or with --prompts FILE',
    )
