"""Progress bars, on stderr, where there is a terminal to draw them on."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from kvrt_cli.terminal import Terminal

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

    from kvrt.bench.words import Record


def bar_of(terminal: Terminal, *columns: "ProgressColumn") -> "Progress":
    """A bar that is gone in the end. It leaves stdout alone, or answers would stand where it is."""
    from rich.progress import Progress

    return Progress(
        *columns, console=terminal.console(sys.stderr), transient=True, redirect_stdout=False
    )


@contextmanager
def line_bar(terminal: Terminal, total: int) -> Iterator[Callable[[], object]]:
    """A bar that counts answered lines; yields what to call for each.

    Where stdout is a terminal too, the answers themselves are the progress.
    """
    if not terminal.progress or sys.stdout.isatty():
        yield lambda: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    with bar_of(
        terminal,
        TextColumn("answering"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


@contextmanager
def counting_bar(
    terminal: Terminal, what: str, total: int, *, of_bytes: bool = False
) -> Iterator[Callable[[int], object]]:
    """A bar for a total that is known; yields what to tell how much is done."""
    if not terminal.progress:
        yield lambda done: None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    with bar_of(
        terminal,
        TextColumn(what),
        BarColumn(),
        DownloadColumn(binary_units=True) if of_bytes else MofNCompleteColumn(),
        TimeRemainingColumn(),
    ) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def listening_bar(terminal: Terminal) -> Iterator[Callable[[str, float], None]]:
    """A line that says how far sounds are written; yields what to tell a file and a time of it.

    Where stdout is a terminal too, what is written is the progress.
    """
    if not terminal.progress or sys.stdout.isatty():
        yield lambda file, seconds: None
        return
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    with bar_of(
        terminal,
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    ) as bar:
        task = bar.add_task("listening", total=None)
        yield lambda file, seconds: bar.update(task, description=f"{file}: {seconds:.0f} s")


@contextmanager
def loading_bar(terminal: Terminal) -> Iterator[Callable[[int, int], None] | None]:
    """A bar that appears with the first bytes that are downloaded, or read to be quantised.

    Yields what to tell them to.
    """
    if not terminal.progress:
        yield None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    bar = bar_of(
        terminal,
        TextColumn("loading"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    task = bar.add_task("", total=None)

    def show(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        bar.stop()


class BenchBar:
    """A bar that counts runs, with the test that runs; `hide` it before printing a row."""

    def __init__(self, terminal: Terminal, total: int) -> None:
        self._bar = _runs_bar(terminal) if terminal.progress else None
        if self._bar is not None:
            self._task = self._bar.add_task("", total=total)

    def begin(self, test: str) -> None:
        if self._bar is not None:
            self._bar.start()
            self._bar.update(self._task, description=test)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.advance(self._task)

    def hide(self) -> None:
        if self._bar is not None:
            self._bar.stop()


class LoadBar:
    """A bar that counts requests, or seconds where these end a run; with what came so far.

    Args:
        requests, seconds: after which no more are begun; None: that is not known.
    """

    def __init__(self, terminal: Terminal, requests: int | None, seconds: float | None) -> None:
        self._bar = _runs_bar(terminal) if terminal.progress else None
        self._seconds = None if requests is not None else seconds
        self._total = requests if requests is not None else seconds
        self._ended = self._failed = self._tokens = 0

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._task = self._bar.add_task("asking", total=self._total)
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def told(self, record: "Record") -> None:
        """A request has ended."""
        if self._bar is None:
            return
        self._ended += 1
        self._failed += not record.good
        self._tokens += record.tokens
        rate = self._tokens / record.end if record.end else 0.0
        done = self._ended if self._seconds is None else round(record.end, 1)
        text = f"{self._ended} answers, {self._failed} failed, {rate:.0f} tokens/s"
        self._bar.start()
        self._bar.update(self._task, completed=done, description=text)


def _runs_bar(terminal: Terminal) -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

    return bar_of(
        terminal,
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
    )
