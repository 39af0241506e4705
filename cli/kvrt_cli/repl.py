"""A conversation at the terminal: ``kvrt run MODEL`` without a prompt."""

import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from kvrt.errors import CapacityError, KvrtError, RequestError
from kvrt.units import format_bytes
from kvrt_cli.answer import Style, about, listen, newline_after, report
from kvrt_cli.asking import Asking
from kvrt_cli.errors import explain_request
from kvrt_cli.options.sampling import NAMES, resolve
from kvrt_cli.stdin import valid_text
from kvrt_cli.terminal import Terminal

if TYPE_CHECKING:
    from kvrt.runtime import Runtime

CLEAR = "/clear forgets the conversation"
COMMAND = re.compile(r"/\w{1,20}", re.ASCII)
PROMPT, MORE, QUOTES = ">>> ", "... ", '"""'

HELP = f"""\
/set parameter NAME VALUE  a sampling parameter ({", ".join(NAMES[:4])}, ...)
/set system TEXT           begin each conversation with this; without TEXT: none
/set verbose, /set quiet   print statistics after each answer, or not
/show info                 the model, the device, the parameters in force
/clear                     forget the conversation
/bye                       leave; so does Ctrl-D
/help, /?                  this
{QUOTES}                        begin and end a text of several lines
Ctrl-C                     stop the answer; what was said stays in the conversation"""


@dataclass
class Repl:
    """A conversation and the settings it goes on with."""

    terminal: Terminal
    runtime: "Runtime"
    asking: Asking
    style: Style
    messages: list[Mapping[str, Any]] = field(default_factory=list)

    def run(self) -> None:
        """Read and answer until the user leaves."""
        _edit_lines()
        self.terminal.note("/? for help, Ctrl-D or /bye to leave")
        while (text := self._read()) is not None:
            if text.split()[:1] == ["/bye"]:
                return
            try:
                text = valid_text(text, "the input")
                if text.startswith("/"):
                    self._command(text)
                elif text.strip():
                    self._answer(text)
            except (RequestError, CapacityError) as error:
                self._refuse(error)

    def _refuse(self, error: KvrtError) -> None:
        """Say why an input is not answered; the conversation stays as it was."""
        cause, fix = explain_request(error)
        full = isinstance(error, CapacityError) or getattr(error, "param", "") == "prompt"
        self.terminal.error(cause, CLEAR if full and self.messages else fix)

    # --- reading -----------------------------------------------------------------------------

    def _read(self) -> str | None:
        """One input of the user, perhaps of several lines; None to leave."""
        lines: list[str] = []
        try:
            line = input(PROMPT)
            if not line.startswith(QUOTES):
                return line
            line = line.removeprefix(QUOTES)
            while QUOTES not in line:
                lines.append(line)
                line = input(MORE)
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()
            self.terminal.note("Ctrl-D or /bye leaves")
            return ""
        return "\n".join([*lines, line[: line.index(QUOTES)]])

    # --- answering ---------------------------------------------------------------------------

    def _answer(self, text: str) -> None:
        conversation = [*self.messages, {"role": "user", "content": text}]
        started = time.perf_counter()
        prompt, params = self.asking.prepare(conversation)
        stream = self.runtime.stream(prompt, params, adapter=self.asking.adapter)
        result, interrupt = listen(self.terminal, stream, live=self.style.stream)
        if not self.style.stream:
            self.terminal.say(result.text + newline_after(result.text))
        if isinstance(interrupt, SystemExit):
            raise interrupt
        if result.error is not None:
            self._refuse(result.error)
        if self.style.verbose:
            report(self.terminal, self.runtime, [result], time.perf_counter() - started)
        # An answer that was stopped stays as far as the user saw it.
        self.messages = [*conversation, {"role": "assistant", "content": result.text}]

    # --- commands ----------------------------------------------------------------------------

    def _command(self, text: str) -> None:
        match text.split(maxsplit=3):
            case ["/help" | "/?"]:
                self.terminal.plain(HELP)
            case ["/clear"]:
                self.messages = []
                self.terminal.note("the conversation is forgotten")
            case ["/set", "parameter", name, value]:
                self._set_parameter(name, value)
            case ["/set", "system", *_]:
                system = text.split("system", 1)[1].strip() or None
                self.asking = replace(self.asking, system=system)
                self.messages = []
                self.terminal.note("a new conversation begins")
            case ["/set", "verbose" | "quiet" as how]:
                self.style = replace(self.style, verbose=how == "verbose")
            case ["/show", "info"]:
                self.terminal.plain(self._info())
            case _:
                # A text that begins with a slash may be a prompt, and is not quoted.
                named = f": {text}" if COMMAND.fullmatch(text) else ""
                self.terminal.error(f"no such command{named}", "/? lists them")

    def _set_parameter(self, name: str, text: str) -> None:
        if name not in NAMES:
            raise RequestError(
                f"there is no parameter {name!r:.40}", fix=f"use one of {', '.join(NAMES)}"
            )
        wishes = {**self.asking.wishes, name: _value(text)}
        resolve(wishes, self.asking.generation, chat=True)
        self.asking = replace(self.asking, wishes=wishes)

    def _info(self) -> str:
        params = resolve(self.asking.wishes, self.asking.generation, chat=True)
        cache = self.runtime.stats().cache
        rows = about(self.runtime) | {
            "context": f"{self.runtime.model.max_model_len} tokens",
            "weights": format_bytes(self.runtime.model.weight_bytes),
            "KV mapped": f"{format_bytes(cache.mapped_bytes)} of {format_bytes(cache.limit_bytes)}",
            "KV cached": format_bytes(cache.cached_bytes),
            "system": self.asking.system or "none",
            "messages": len(self.messages),
        }
        rows |= {field.name: getattr(params, field.name) for field in fields(params)}
        return "\n".join(f"{name:<20} {value}" for name, value in rows.items())


def _value(text: str) -> object:
    """A number, a list or a text, as the user typed it."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _edit_lines() -> None:
    """Give `input` line editing and a history, where Python was built with them."""
    with suppress(ImportError):
        import readline  # noqa: F401
