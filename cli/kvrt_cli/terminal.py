"""Where things are printed: the answer to stdout, everything else to stderr."""

import logging
import os
import sys
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, TextIO

import click

from kvrt_cli.jsontext import to_json
from kvrt_cli.streams import discard

if TYPE_CHECKING:
    from rich.console import Console

ColorMode = Literal["auto", "always", "never"]

# Control characters of a model's text would steer the terminal: they are shown as their pictures
# (U+2400 and on), except for the line feed and the tab.
PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
PICTURES |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


@dataclass
class Terminal:
    """How this call of `kvrt` prints; made by `kvrt_cli.main` and handed to every command.

    Args:
        color: ``auto`` is colour on a terminal, unless NO_COLOR is set or TERM is ``dumb``.
        quiet: print nothing but answers and errors.
        debug: errors show their traceback.
        log_json: what is logged is JSON, an object a line.
    """

    color: ColorMode = "auto"
    quiet: bool = False
    debug: bool = False
    log_json: bool = False

    def colored(self, stream: TextIO) -> bool:
        if self.color == "auto":
            env = os.environ
            return stream.isatty() and not env.get("NO_COLOR") and env.get("TERM") != "dumb"
        return self.color == "always"

    def console(self, stream: TextIO) -> "Console":
        """A rich console on `stream`. It interprets no markup: text prints as it is."""
        from rich.console import Console

        system: Literal["auto", "standard"] = "auto" if stream.isatty() else "standard"
        return Console(
            file=stream,
            force_terminal=True if self.color == "always" else None,
            color_system=system if self.colored(stream) else None,
            no_color=not self.colored(stream),  # else it asks NO_COLOR itself
            markup=False,
            emoji=False,
            highlight=False,
        )

    @property
    def progress(self) -> bool:
        """True if progress should be shown on stderr."""
        return not self.quiet and sys.stderr.isatty()

    # --- stdout ------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Print a piece of an answer at once, without a newline."""
        if text:
            sys.stdout.write(text.translate(PICTURES) if sys.stdout.isatty() else text)
            sys.stdout.flush()

    def json(self, value: object, indent: int | None = None) -> None:
        """Print a value as JSON and a newline."""
        utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
        print(to_json(value, indent=indent, ascii_only=not utf8), flush=True)

    # --- stderr ------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Something worth knowing, unless `quiet`."""
        if not self.quiet:
            self._stderr(text, dim=True)

    def plain(self, text: str) -> None:
        """What was asked for, such as statistics."""
        self._stderr(text)

    def warn(self, text: str) -> None:
        if not self.quiet:
            self._stderr(click.style("warning: ", fg="yellow") + text)

    def error(self, cause: str, fix: str = "") -> None:
        """One line with the cause, one with the remedy."""
        self._stderr(click.style("error: ", fg="red", bold=True) + cause)
        if fix:
            self._stderr(click.style("  fix: ", fg="green") + fix)

    def traceback(self, error: BaseException) -> None:
        """Where an error comes from, for those who debug."""
        if self.debug:
            self._stderr("".join(traceback.format_exception(error)).rstrip())

    def _stderr(self, text: str, *, dim: bool = False) -> None:
        sys.stdout.flush()
        styled = click.style(text, dim=True) if dim else text
        try:
            click.echo(styled, err=True, color=self.colored(sys.stderr))
        except OSError:  # nobody can read it: that costs no answer
            discard(sys.stderr)


class LogLines(logging.Handler):
    """Shows what `kvrt` logs as lines of the terminal."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if self._terminal.log_json:
            self._terminal.plain(to_json(self._fields(record, text)))
            return
        if record.levelno >= logging.ERROR:
            self._terminal.error(text)
        elif record.levelno >= logging.WARNING:
            self._terminal.warn(text)
        else:
            self._terminal.note(f"{record.name}: {text}")
        if record.exc_info and self._terminal.debug:
            click.echo(logging.Formatter().formatException(record.exc_info), err=True)

    def _fields(self, record: logging.LogRecord, text: str) -> dict[str, object]:
        """What a record says, with the fields that whoever logged it gave as ``extra={"fields":
        ...}``."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        found = {"at": at, "level": record.levelname, "logger": record.name, "message": text}
        if record.exc_info and self._terminal.debug:
            found["traceback"] = logging.Formatter().formatException(record.exc_info)
        return {**found, **getattr(record, "fields", {})}
