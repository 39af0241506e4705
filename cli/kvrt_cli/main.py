"""The `kvrt` command: hands over to a sub-command, and makes an exit code of what goes wrong."""

import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

import click

import kvrt
from kvrt.config import Environment
from kvrt.errors import ConfigError
from kvrt_cli.errors import explain
from kvrt_cli.naming import NAME, TINY
from kvrt_cli.options import color_option
from kvrt_cli.profiles.option import configurable
from kvrt_cli.profiles.origins import Call, call_of
from kvrt_cli.profiles.settings import ABOUT_PROFILES
from kvrt_cli.streams import discard, fill_closed, replace_what_cannot_be_encoded
from kvrt_cli.terminal import LogLines, Terminal

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
PIPE_CLOSED = 128 + signal.SIGPIPE
CONTAINED = ("kvrt-doctor", "kvrt-plugin")
"""Names of threads that are not waited for."""

EPILOG = f"""\
\b
Exit codes:
  0    done
  1    a runtime error; for a file of prompts, some of them failed
  2    bad usage: an option, an argument, the prompt or standard input
  3    the model is missing, damaged or not supported
  4    the backend is unknown, broken or finds no device
  5    it does not fit in memory
  {INTERRUPTED}  interrupted (Ctrl-C)
  {PIPE_CLOSED}  the reader of the output went away
  {TERMINATED}  terminated (SIGTERM)

\b
Environment:
  KVRT_COMMAND_OPTION  an option of a command, as in KVRT_SERVE_PORT
  KVRT_BACKEND    the backend that "auto" means
  KVRT_ISA        the instruction set of the CPU kernels
  KVRT_SHARE_DIR  where it is kept who shares a device
  KVRT_LOG_LEVEL  DEBUG, INFO, WARNING (the default) or ERROR
  KVRT_LOG_FORMAT text (the default) or json
  KVRT_DEBUG=1    errors show their traceback
  NO_COLOR        no colours
"""


class Commands(Mapping[str, click.Command]):
    """The sub-commands, each in the module of its name, which is loaded when it is asked for."""

    NAMES = (
        "batch",
        "bench",
        "config",
        "ctl",
        "data",
        "doctor",
        "embed",
        "llama-server",
        "merge",
        "models",
        "profile",
        "profile-config",
        "rerank",
        "route",
        "run",
        "serve",
        "show",
        "store",
        "top",
        "transcribe",
        "tune",
        "usage",
    )

    def __getitem__(self, name: str) -> click.Command:
        if name not in self.NAMES:
            raise KeyError(name)
        word = name.replace("-", "_")
        command: click.Command = getattr(importlib.import_module(f"kvrt_cli.{word}"), word)
        return command if name in ABOUT_PROFILES else configurable(command, [name], self)

    def __iter__(self) -> Iterator[str]:
        return iter(self.NAMES)

    def __len__(self) -> int:
        return len(self.NAMES)


class Cli(click.Group):
    """A group whose `main` prints every failure as a cause and a fix, and exits by the table."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        if "_KVRT_COMPLETE" in os.environ:
            super().main(args, "kvrt", "_KVRT_COMPLETE")
        terminal = Terminal()
        without_output = fill_closed()
        replace_what_cannot_be_encoded()
        with _sigterm_raises(), _logging_to(terminal):
            try:
                words = list(sys.argv[1:] if args is None else args)
                code = self._exit_code(words, terminal, without_output=without_output)
            except BrokenPipeError:
                discard(sys.stdout, sys.stderr)
                code = PIPE_CLOSED
        sys.exit(code)

    def _exit_code(self, args: list[str], terminal: Terminal, *, without_output: bool) -> int:
        meta: Mapping[str, object] = {}
        try:
            terminal.debug = Environment().debug
            if without_output:
                raise ConfigError("standard output is closed", fix="discard it with >/dev/null")
            with self.make_context("kvrt", args, obj=terminal) as ctx:
                meta = ctx.meta
                self.invoke(ctx)
            sys.stdout.flush()
            return 0
        except click.exceptions.Exit as error:
            return error.exit_code
        except (KeyboardInterrupt, click.Abort):
            click.echo(err=True)
            return INTERRUPTED
        except (BrokenPipeError, SystemExit):
            raise
        except BaseException as error:  # a library in Rust panics with an exception of its own kind
            code = self._report(error, args, terminal, call_of(meta))
            if isinstance(error, OSError):
                # What could not be written will not be written at exit either.
                discard(sys.stdout, sys.stderr)
            return code

    def _report(
        self, error: BaseException, args: Sequence[str], terminal: Terminal, call: Call | None
    ) -> int:
        name = next((arg for arg in args if arg in self.commands), "")
        hint = " ".join(["see kvrt", *([name] if name else []), "--help"])
        terminal.traceback(error)
        cause, fix = explain(error, _named(self, args), hint)
        terminal.error(*(call.explained(cause, fix) if call is not None else (cause, fix)))
        return int(getattr(error, "exit_code", 5 if isinstance(error, MemoryError) else 1))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is named; a prompt in its place is not quoted."""
        if not NAME.fullmatch(args[0]):
            raise ConfigError("no such command", fix=f'{TINY} answers: kvrt run {TINY} "..."')
        return super().resolve_command(ctx, args)


def _named(command: click.Command, args: Sequence[str]) -> click.Command:
    """The command that the arguments name, or one in it."""
    for arg in args:
        if isinstance(command, click.Group):
            command = command.commands.get(arg, command)
    return command


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C does, so that memory is given back and partial output printed."""

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _logging_to(terminal: Terminal) -> Iterator[None]:
    """Show what kvrt logs, from KVRT_LOG_LEVEL up, while the command runs."""
    logger, handler = logging.getLogger("kvrt"), LogLines(terminal)
    before = logger.level
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@click.group(
    cls=Cli,
    commands=Commands(),
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(kvrt.__version__, message="kvrt %(version)s")
@color_option
def cli() -> None:
    """Run language models, with elastic, paged KV memory, on whatever hardware is here.

    \b
      kvrt run                        the bundled model completes a text
      kvrt run DIRECTORY "a prompt"   any Hugging Face checkpoint
      kvrt serve DIRECTORY            ... for clients of OpenAI's API
      kvrt llama-server -m FILE       ... as llama.cpp's server does, to its clients
      kvrt route URL URL              several servers behind one address
      kvrt store --memory 8GiB        KV pages that several servers share
      kvrt batch run -i FILE -o FILE  a file of requests in, a file of answers out
      kvrt data dedupe SET -o FILE    sets of prompts and answers: clean, score, keep, compare
      kvrt embed DIRECTORY "a text"   its vector, by a model for that
      kvrt rerank DIRECTORY "a question" < texts.txt   which say most about it
      kvrt transcribe talk.wav --model DIRECTORY   what is said in it
      kvrt show DIRECTORY             what a model takes, and how much of it fits here
      kvrt doctor                     what works on this machine, and how to mend the rest
      kvrt top                        who shares a device, and what each one holds
      kvrt ctl                        ... change that, and let a model sleep
      kvrt usage FILE                 what keys of a server have taken
      kvrt bench                      tokens per second
      kvrt bench serve --url URL      a server under load
      kvrt profile                    what the engine's time goes into
      kvrt tune                       which settings are fastest here
    """
    environment = Environment()
    click.get_current_context().obj.log_json = environment.log_format == "json"
    logging.getLogger("kvrt").setLevel(environment.log_level)


def main() -> NoReturn:
    """The entry point of the script `kvrt`."""
    try:
        cli.main()
    except SystemExit as end:
        if any(thread.name.startswith(CONTAINED) for thread in threading.enumerate()):
            _leave_at_once(int(end.code or 0))
        raise


def _leave_at_once(code: int) -> NoReturn:
    """End the process while a check still runs, or hangs, in foreign code.

    Python would end its thread in the middle of native code, which aborts the process.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)
