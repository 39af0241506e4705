"""How far a batch is, how fast, and how long it will take."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kvrt_cli.terminal import Terminal

if TYPE_CHECKING:
    from kvrt.batches.words import Batch

INTERVAL_S = 1.0


class Meter:
    """What has become of a batch since it was `begun` here.

    Args:
        begun: as it stood then.
    """

    def __init__(self, begun: "Batch") -> None:
        self.begun = begun
        self.batch = begun
        self.show: Callable[[], None] = lambda: None
        self._since = time.monotonic()
        self._until: float | None = None

    def watch(self, batch: "Batch") -> None:
        """It has come so far."""
        if not self.begun.total:
            self.begun = batch  # it was just checked
        self.batch = batch
        self.show()

    def stop(self) -> None:
        """Time counts no more."""
        self._until = time.monotonic()

    @property
    def seconds(self) -> float:
        return (self._until or time.monotonic()) - self._since

    @property
    def answered(self) -> int:
        """Lines that were answered here."""
        return self.begun.left - self.batch.left

    @property
    def tokens_per_s(self) -> float:
        """Of answers."""
        said = self.batch.tokens.said - self.begun.tokens.said
        return said / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """None: it is not known yet."""
        if not self.answered:
            return None
        return self.batch.left * self.seconds / self.answered

    @property
    def cached(self) -> float:
        """The part of the prompts that was not computed, because its pages were there."""
        tokens = self.batch.tokens
        return tokens.cached / tokens.prompt if tokens.prompt else 0.0

    def as_json(self) -> dict[str, Any]:
        batch, tokens, left = self.batch, self.batch.tokens, self.seconds_left
        return {
            "status": batch.status,
            "total": batch.total,
            "completed": batch.done,
            "failed": batch.failed,
            "prompt_tokens": tokens.prompt,
            "cached_tokens": tokens.cached,
            "completion_tokens": tokens.said,
            "seconds": round(self.seconds, 3),
            "lines_per_s": round(self.answered / self.seconds, 3) if self.seconds else 0.0,
            "tokens_per_s": round(self.tokens_per_s, 3),
            "seconds_left": None if left is None else round(left, 1),
        }


def summary(meter: Meter) -> str:
    """In a line, for people."""
    batch = meter.batch
    done = f"{batch.done} of {batch.total} lines answered"
    if not meter.answered:
        return f"{done}, none of them now"
    return (
        f"{done}, {meter.answered} of them now, in {meter.seconds:.1f} s;"
        f" {meter.tokens_per_s:.1f} tokens/s, {meter.cached:.0%} of the prompts cached"
    )


@contextmanager
def metered(terminal: Terminal, begun: "Batch", *, as_json: bool) -> Iterator[Meter]:
    """A meter that is shown while it runs: as a bar, or as lines of JSON."""
    meter, ended = Meter(begun), threading.Event()
    show = None
    if as_json:
        show = threading.Thread(target=_lines, args=(terminal, meter, ended), daemon=True)
        show.start()
    try:
        with _bar(terminal, meter, shown=not as_json):
            yield meter
    finally:
        meter.stop()
        ended.set()
        if show is not None:
            show.join()


def _lines(terminal: Terminal, meter: Meter, ended: threading.Event) -> None:
    while not ended.wait(INTERVAL_S):
        terminal.json(meter.as_json())


@contextmanager
def _bar(terminal: Terminal, meter: Meter, *, shown: bool) -> Iterator[None]:
    if not shown or not terminal.progress:
        yield
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("answering"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=terminal.console(sys.stderr),
        transient=True,
        redirect_stdout=False,
    )
    task = bar.add_task("", total=None, told="")

    def moved() -> None:
        batch = meter.batch
        bar.start()  # not before there is something to show: checking has none
        told = (
            f"{batch.failed} failed, {meter.tokens_per_s:.0f} tokens/s, {meter.cached:.0%} cached"
        )
        bar.update(task, total=batch.total, completed=batch.total - batch.left, told=told)

    meter.show = moved
    try:
        yield
    finally:
        bar.stop()
