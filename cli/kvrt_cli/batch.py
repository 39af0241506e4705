"""``kvrt batch``: a file of requests in, a file of answers out."""

import asyncio
import contextlib
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvrt.errors import KvrtError, RequestError
from kvrt_cli.beside import open_embedder
from kvrt_cli.errors import of_the_system
from kvrt_cli.extras import check_extra
from kvrt_cli.meter import Meter, metered, summary
from kvrt_cli.naming import TINY, model_name
from kvrt_cli.options import color_option, file_path, folder_path, quiet_option
from kvrt_cli.options.runtime import model_options, runtime_config
from kvrt_cli.options.sections import BATCH, SectionedCommand
from kvrt_cli.run import open_runtime
from kvrt_cli.terminal import Terminal

if TYPE_CHECKING:
    from kvrt.batches.price import Price
    from kvrt.batches.run import Runner
    from kvrt.batches.words import Batch
    from kvrt.embedding.embedder import Embedder
    from kvrt.runtime import Runtime
    from kvrt.server.batches.local import Job

UNITS = {"m": 60, "h": 3600, "d": 86_400}
PERIOD = re.compile(r"([1-9][0-9]{0,5})([mhd])", re.ASCII)
NAMES = ("embed_model", "alias", "seconds", "retry", "restart", "database")
"""Options that are a job's as they are."""

SHOWN = 10
"""Problems of an input that are told."""

database_option = click.option(
    "--database",
    metavar="URL",
    help="A database of PostgreSQL, as in postgresql://HOST/NAME, for several workers that all see"
    " the files.",
)


def period(value: str) -> int:
    """A time such as ``24h``, in seconds."""
    match = PERIOD.fullmatch(value)
    if match is None:
        raise click.BadParameter("it is a number of minutes, hours or days, such as 24h")
    return int(match[1]) * UNITS[match[2]]


@click.group("batch", short_help="A file of requests in, a file of answers out.")
@color_option
def batch() -> None:
    """Answer a file of requests, each exactly once, whatever happens meanwhile."""


@batch.command("letters", short_help="Webhooks that nobody has taken.")
@click.argument("folder", type=folder_path)
@database_option
@click.option("--again", is_flag=True, help="Have them delivered again.")
@color_option
@click.pass_obj
def letters(terminal: Terminal, /, folder: Path, database: str | None, again: bool) -> None:
    """Print the webhooks of a server's --batches FOLDER that were not taken for two days: a JSON
    object a line. The server may be at work."""
    from kvrt.batches.deliveries import deliveries_of

    with deliveries_of(folder, database) as deliveries:
        dead = deliveries.dead()
        if again:
            deliveries.again(dead)
    for each in dead:
        terminal.json({"created": each.created, "tries": each.tries, **json.loads(each.body)})


@batch.command("run", cls=SectionedCommand, sections=BATCH)
@click.argument("model", required=False, type=model_name)
@click.option("-i", "--input", required=True, type=file_path, metavar="FILE", help="The requests.")
@click.option("-o", "--output", required=True, type=file_path, metavar="FILE", help="The answers.")
@click.option(
    "--errors",
    type=file_path,
    metavar="FILE",
    help="Lines that have none, and why; made only if there are some. Default: the output's name"
    " with .errors before its ending.",
)
@click.option(
    "--state",
    type=folder_path,
    metavar="DIR",
    help="Where it is kept what has been answered. Default: the output's name with .state.",
)
@database_option
@click.option("--retry", is_flag=True, help="Ask lines again that have failed.")
@click.option(
    "--restart", is_flag=True, help="Begin anew, whatever was answered; write over the output."
)
@click.option(
    "--within",
    "seconds",
    type=period,
    metavar="TIME",
    help="Ask no more lines after so long, such as 24h: those that are left are errors.",
)
@click.option(
    "--price",
    metavar="PRICE",
    help="What the work costs, such as 1.20/h of the machine, or 0.30/kWh of its processors: it is"
    " told as cost.",
)
@click.option(
    "--alias",
    multiple=True,
    metavar="NAME",
    help="What lines may call MODEL, beside its name; may be given several times. *: anything.",
)
@click.option("--embed-model", metavar="MODEL", help="Answers lines that want vectors.")
@click.option(
    "--chat-template",
    metavar="FILE",
    help="For a model that has none, or in place of its own; plain: one that is built in.",
)
@model_options()
@click.option(
    "--json", "as_json", is_flag=True,
    help="Print where it stands once a second, and at the end: a JSON object a line.",
)  # fmt: skip
@quiet_option
@color_option
@click.pass_obj
def run(
    terminal: Terminal,
    /,
    model: str | None,
    input: Path,
    output: Path,
    errors: Path | None,
    state: Path | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Answer a file of requests.

    A line is a request as of OpenAI's batches: {"custom_id": ..., "method": "POST", "url":
    "/v1/chat/completions", "body": {...}}. All of the file is checked first. MODEL is as of kvrt
    run; without it, each line is answered by the model that it names, one model after the other.

    Stopped by Ctrl-C, a kill, or a loss of power, the same command goes on where it was. See
    docs/batch.md.
    """
    terminal.quiet = quiet
    check_extra("batch")
    from kvrt.batches.price import Price
    from kvrt.server.batches.local import Job
    from kvrt.server.served import read_template

    template = options["chat_template"]
    job = Job(
        input=input.absolute(),
        output=output.absolute(),
        errors=(errors or output.with_name(f"{output.stem}.errors{output.suffix}")).absolute(),
        state=(state or output.with_name(f"{output.name}.state")).absolute(),
        model=model,
        template=None if template is None else read_template(template),
        **{name: options[name] for name in NAMES},
    )
    _check(job)
    runtime_config(model or TINY, options)  # bad values are refused before anything is begun
    price = None if options["price"] is None else Price.read(options["price"])
    command = _Command(terminal, job, options, price, as_json=as_json)
    with contextlib.closing(command):
        found, number = asyncio.run(command.go_on())
    if number:
        raise SystemExit(128 + number)
    if found.failed or found.left:
        click.get_current_context().exit(1)


def _check(job: "Job") -> None:
    if len({job.input, job.output, job.errors}) < 3:
        raise click.UsageError("input, output and errors are three different files")
    for path in (job.output, job.errors, job.state):
        if not path.parent.is_dir():
            raise click.UsageError(f"{path.parent} is no folder")
    try:
        job.input.open("rb").close()
    except OSError as error:
        raise click.UsageError(f"--input: {of_the_system(error)}") from None


class _Command:
    """One call of the command.

    Args:
        options: of the model and its memory.
        price: of the work.
    """

    def __init__(
        self,
        terminal: Terminal,
        job: "Job",
        options: dict[str, Any],
        price: "Price | None",
        *,
        as_json: bool,
    ) -> None:
        from kvrt.batches.store import Store
        from kvrt.server.batches.local import entered

        self._terminal = terminal
        self._job = job
        self._options = options
        self._as_json = as_json
        self._price = price
        self._loaded: Callable[[str], None] = lambda backend: None
        self._signal = 0
        self._store = Store(job.state, url=job.database)
        try:
            self._batch = entered(self._store, job)
        except BaseException as error:
            self._store.close()
            if isinstance(error, OSError):
                raise KvrtError(f"the batch cannot be entered: {error}") from None
            raise

    def close(self) -> None:
        self._store.close()

    async def go_on(self) -> "tuple[Batch, int]":
        """The batch as it stands then, and the signal that has ended it before."""
        from kvrt.server.batches.local import Models, runner

        begun = self._batch
        if begun.over:
            self._tell(Meter(begun))
            return begun, 0
        if answered := begun.total - begun.left:
            self._terminal.note(f"going on: {answered} of {begun.total} lines have been answered")
        models = Models(self._job, self._open_runtime, self._open_embedder)
        with metered(self._terminal, begun, self._price, as_json=self._as_json) as meter:
            self._loaded = meter.on
            worker = runner(self._store, models, self._options["max_running"], meter.watch)
            self._listen(worker)
            try:
                found = await worker.run(begun.id)
            except OSError as error:
                raise KvrtError(
                    f"answers cannot be kept: {error}",
                    fix="make room; the same command goes on from there",
                ) from None
            finally:
                await models.close()
        if found.status == "failed":
            raise self._refused(found)
        self._tell(meter)
        return found, self._signal if not found.over else 0

    def _listen(self, worker: "Runner") -> None:
        loop = asyncio.get_running_loop()

        def end(number: int) -> None:
            if self._signal:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            self._signal = number
            worker.stop()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, partial(end, number))

    def _tell(self, meter: Meter) -> None:
        if self._as_json:
            self._terminal.json(meter.as_json())
        found = meter.batch
        self._terminal.note(summary(meter))
        if not found.over:
            self._terminal.note("stopped; the same command goes on from there")
        elif found.failed or found.left:
            errors = found.failed + found.left
            self._terminal.error(
                f"{errors} of {found.total} lines have no answer: {self._job.errors} says why",
                "ask them again with --retry",
            )

    def _refused(self, found: "Batch") -> RequestError:
        """An input with lines that cannot be asked."""
        for problem in found.problems[:SHOWN]:
            where = "" if problem.line is None else f"line {problem.line}: "
            self._terminal.error(f"{where}{problem.message}")
        if len(found.problems) > SHOWN:
            self._terminal.error(f"and {len(found.problems) - SHOWN} others, or more")
        return RequestError(f"{self._job.input} cannot be asked; nothing was", fix="mend it")

    @contextlib.contextmanager
    def _open_runtime(self, name: str) -> "Iterator[Runtime]":
        with open_runtime(self._terminal, runtime_config(name, self._options)) as runtime:
            self._loaded(runtime.device_info.backend)
            yield runtime

    def _open_embedder(self, name: str) -> "Embedder":
        return open_embedder(name, runtime_config(TINY, self._options))
