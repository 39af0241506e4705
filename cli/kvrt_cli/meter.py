"""How far a batch is, shown while it goes on."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kvrt_cli.progress import bar_of
from kvrt_cli.terminal import Terminal

if TYPE_CHECKING:
    from kvrt.batches.pace import Standing
    from kvrt.batches.price import Price
    from kvrt.batches.words import Batch

INTERVAL_S = 1.0


class Meter:
    """What has become of a batch since it was `begun` here, and who is shown it.

    Args:
        begun: as it stood then.
        price: of the work.
    """

    def __init__(self, begun: "Batch", price: "Price | None" = None) -> None:
        from kvrt.batches.pace import Pace

        self._pace = Pace(begun, price=price)
        self.on = self._pace.on
        self.show: Callable[[], None] = lambda: None
        self.stop = self._pace.stop

    def watch(self, batch: "Batch") -> None:
        """It has come so far."""
        self._pace.watch(batch)
        self.show()

    @property
    def batch(self) -> "Batch":
        """As it stands."""
        return self._pace.batch

    @property
    def standing(self) -> "Standing":
        """As of now."""
        return self._pace.standing

    def as_json(self) -> dict[str, Any]:
        batch, found = self.batch, self.standing
        left = found.seconds_left
        return {
            "status": batch.status,
            "total": batch.total,
            "completed": batch.done,
            "failed": batch.failed,
            "prompt_tokens": batch.tokens.prompt,
            "cached_tokens": batch.tokens.cached,
            "completion_tokens": batch.tokens.said,
            "seconds": round(found.seconds, 3),
            "lines_per_s": round(found.lines_per_s, 3),
            "tokens_per_s": round(found.tokens_per_s, 3),
            "seconds_left": None if left is None else round(left, 1),
            "energy_j": None if found.energy_j is None else round(found.energy_j, 1),
            "energy_why": found.energy_why,
            "cost": found.cost,
        }


def summary(meter: Meter) -> str:
    """In a line, for people."""
    batch, found = meter.batch, meter.standing
    done = f"{batch.done} of {batch.total} lines answered"
    if not found.lines:
        return f"{done}, none of them now"
    energy = "" if found.energy_j is None else f", {found.energy_j / 3600:.3f} Wh"
    cost = "" if found.cost is None else f", at a cost of {found.cost:.4f}"
    return (
        f"{done}, {found.lines} of them now, in {found.seconds:.1f} s;"
        f" {found.tokens_per_s:.1f} tokens/s, {found.cached:.0%} of the prompts cached"
        f"{energy}{cost}"
    )


@contextmanager
def metered(
    terminal: Terminal, begun: "Batch", price: "Price | None", *, as_json: bool
) -> Iterator[Meter]:
    """A meter that is shown while it runs: as a bar, or as lines of JSON."""
    meter, ended = Meter(begun, price), threading.Event()
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
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = bar_of(
        terminal,
        TextColumn("answering"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    task = bar.add_task("", total=None, told="")

    def moved() -> None:
        batch, found = meter.batch, meter.standing
        bar.start()  # not before there is something to show: checking has none
        told = (
            f"{batch.failed} failed, {found.tokens_per_s:.0f} tokens/s, {found.cached:.0%} cached"
        )
        bar.update(task, total=batch.total, completed=batch.total - batch.left, told=told)

    meter.show = moved
    try:
        yield
    finally:
        bar.stop()
