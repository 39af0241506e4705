"""``kvrt run --prompts FILE``: every line a prompt, all of them one continuous batch."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvrt.errors import KvrtError
from kvrt.sampling import SamplingParams
from kvrt_cli.answer import as_json, error_json, report
from kvrt_cli.asking import Asking
from kvrt_cli.errors import REPORT, explain_request
from kvrt_cli.progress import line_bar
from kvrt_cli.prompts import Item
from kvrt_cli.terminal import Terminal

if TYPE_CHECKING:
    from kvrt import Runtime, Stream

WINDOW = 4
"""Requests in flight, in multiples of `max_running`: enough that the batch stays full while the
oldest answer is waited for, and few enough that a long file does not fill the memory."""


@dataclass(slots=True)
class _Asked:
    """A line of the file, and what became of it so far: a stream, or the error it failed with."""

    item: Item
    params: SamplingParams | None = None
    stream: "Stream | None" = None
    error: KvrtError | None = None


def answer_all(
    terminal: Terminal, runtime: "Runtime", asking: Asking, items: Sequence[Item], *, verbose: bool
) -> int:
    """Answer every item; one JSON line each on stdout, in the order of the file.

    A line that cannot be asked, or fails, has an ``error`` and is counted. Ctrl-C and SIGTERM
    abort what runs, and print it as far as it came.

    Returns:
        How many lines failed.
    """
    started = time.perf_counter()
    waiting, flying = deque(items), deque[_Asked]()
    done: list[_Asked] = []
    window = WINDOW * runtime.config.max_running

    def finish() -> None:
        if flying[0].stream is not None:
            flying[0].error = flying[0].stream.wait().error
        done.append(flying.popleft())
        terminal.json(_line(done[-1]))

    with line_bar(terminal, len(items)) as advance:
        try:
            while waiting or flying:
                while waiting and len(flying) < window:
                    flying.append(_ask(runtime, asking, waiting.popleft()))
                finish()
                advance()
        except (KeyboardInterrupt, SystemExit):
            for asked in flying:
                if asked.stream is not None:
                    asked.stream.close()
            while flying:
                finish()
            raise
    failed = [(asked.item.line, asked.error) for asked in done if asked.error is not None]
    for line, error in failed:
        terminal.traceback(error)
        cause, fix = explain_request(error)
        terminal.error(f"line {line}: {cause}", fix)
    if verbose:
        results = [asked.stream.wait() for asked in done if asked.stream is not None]
        report(terminal, runtime, results, time.perf_counter() - started)
    return len(failed)


def _ask(runtime: "Runtime", asking: Asking, item: Item) -> _Asked:
    if item.error is not None:
        return _Asked(item, error=item.error)
    try:
        prompt, params = asking.prepare(item.prompt, item.wishes)
        return _Asked(item, params, runtime.stream(prompt, params, adapter=asking.adapter))
    except KvrtError as error:
        return _Asked(item, error=error)
    except Exception as error:  # whatever it is, it is about this line, and the others go on
        unexpected = KvrtError(f"unexpected {type(error).__name__}", fix=REPORT)
        unexpected.__cause__ = error
        return _Asked(item, error=unexpected)


def _line(asked: _Asked) -> dict[str, Any]:
    value: dict[str, Any] = {"line": asked.item.line}
    if asked.item.id is not None:
        value["id"] = asked.item.id
    if asked.stream is not None and asked.params is not None:
        value |= as_json(asked.stream.wait(), asked.params)
    elif asked.error is not None:
        value["error"] = error_json(asked.error)
    return value
