"""Progress bars, on stderr, where there is a terminal to draw them on."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kvrt_cli.terminal import Terminal


@contextmanager
def line_bar(terminal: Terminal, total: int) -> Iterator[Callable[[], object]]:
    """A bar that counts answered lines; yields what to call for each."""
    if not terminal.progress:
        yield lambda: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("answering"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=terminal.console(sys.stderr),
        transient=True,
        # If stdout is the terminal too, its lines are printed above the bar.
        redirect_stdout=sys.stdout.isatty(),
    ) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


@contextmanager
def download_bar(terminal: Terminal) -> Iterator[Callable[[int, int], None] | None]:
    """A bar that appears with the first bytes of a download; yields what to tell them to."""
    if not terminal.progress:
        yield None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    bar = Progress(
        TextColumn("downloading"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=terminal.console(sys.stderr),
        transient=True,
    )
    task = bar.add_task("", total=None)

    def show(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        bar.stop()
