"""A conversation at the terminal: ``kvrt run MODEL`` without a prompt."""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from kvrt.errors import CapacityError, RequestError
from kvrt.units import format_bytes
from kvrt_cli.answer import Style, about, listen, newline_after, report
from kvrt_cli.asking import Asking
from kvrt_cli.sampling import NAMES, resolve
from kvrt_cli.terminal import Terminal

if TYPE_CHECKING:
    from kvrt.runtime import Runtime

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
            if text.startswith("/"):
                if text.split()[0] == "/bye":
                    return
                self._command(text)
            elif text.strip():
                self._answer(text)

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
        try:
            prompt, params = self.asking.prepare(conversation)
            stream = self.runtime.stream(prompt, params)
        except (RequestError, CapacityError) as error:
            self.terminal.error(str(error), error.fix or "/clear forgets the conversation")
            return
        result, interrupt = listen(self.terminal, stream, live=self.style.stream)
        if not self.style.stream:
            self.terminal.say(result.text + newline_after(result.text))
        if isinstance(interrupt, SystemExit):
            raise interrupt
        if result.error is not None:
            self.terminal.error(str(result.error), result.error.fix)
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
                self.terminal.error(f"no such command: {text}", "/? lists them")

    def _set_parameter(self, name: str, text: str) -> None:
        try:
            if name not in NAMES:
                raise RequestError(
                    f"there is no parameter {name!r}", fix=f"use one of {', '.join(NAMES)}"
                )
            wishes = {**self.asking.wishes, name: _value(text)}
            resolve(wishes, self.asking.generation, chat=True)
        except RequestError as error:
            self.terminal.error(str(error), error.fix)
            return
        self.asking = replace(self.asking, wishes=wishes)

    def _info(self) -> str:
        params = resolve(self.asking.wishes, self.asking.generation, chat=True)
        cache = self.runtime.stats().cache
        rows = about(self.runtime) | {
            "context": f"{self.runtime.model.max_model_len} tokens",
            "weights": format_bytes(self.runtime.model.weight_bytes),
            "KV mapped": f"{format_bytes(cache.mapped_bytes)} of {format_bytes(cache.limit_bytes)}",
            "KV cached": format_bytes(cache.cached_pages * cache.page_bytes),
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
