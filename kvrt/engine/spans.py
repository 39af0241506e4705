"""What the engine's thread does in a step, and since when: for those who want to know.

    turn         | fetch | plan | map | run          | sample | wait | answer            | unmap |
    enter, leave                            | plan |                   | text | text |

Turns follow each other without a gap, so that a step is the sum of its turns. What is entered lies
within a turn. While nobody wants to know, each call is a look at a flag.
"""

import time
from collections.abc import Sequence

from kvrt.engine.events import Span, StepPhases
from kvrt.sched.plan import Row


class Spans:
    """Belongs to the engine's thread."""

    def __init__(self) -> None:
        self.on = False
        """Whether this step is recorded."""
        self._open: list[tuple[str, float]] = []
        self._done: list[Span] = []
        self._rows: Sequence[Row] = ()

    def begin(self, *, wanted: bool) -> None:
        """A step begins. What an earlier one has left, which did not come to its end, is gone."""
        self.on = wanted
        self._open.clear()
        self._done.clear()
        self._rows = ()

    def turn(self, name: str) -> None:
        """This comes now, and what came before has ended."""
        if not self.on:
            return
        now = time.perf_counter()
        self._close(0, now)
        self._open.append((name, now))

    def run(self, rows: Sequence[Row]) -> None:
        """These are computed now."""
        self.turn("run")
        self._rows = rows

    def enter(self, name: str) -> None:
        """Within the turn, this begins. It ends with `leave`, or with the turn."""
        if self.on:
            self._open.append((name, time.perf_counter()))

    def leave(self) -> None:
        """What was entered last has ended."""
        if self.on:
            self._close(len(self._open) - 1, time.perf_counter())

    def told(self, number: int, counts: tuple[int, int]) -> StepPhases:
        """Step number `number` has ended: what it was.

        Args:
            counts: of sequences that run, and that wait.
        """
        rows = self._rows
        self._close(0, time.perf_counter())
        said = sum(row.count for row in rows if row.samples and row.count == 1 + len(row.drafts))
        read = sum(row.count for row in rows) - said
        context = sum(row.start + row.count for row in rows)
        return StepPhases(number, tuple(self._done), read, said, context, *counts)

    def _close(self, depth: int, now: float) -> None:
        while len(self._open) > depth:
            name, began = self._open.pop()
            self._done.append(Span(name, began, now, len(self._open)))
