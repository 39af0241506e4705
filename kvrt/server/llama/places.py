"""Slots, as llama-server's clients know them: which of the requests that go on has which number.

Nothing is kept in a slot: pages of prompts are found again whichever number a request has. So a
number is no more than a name; there are as many as requests run at once, and what waits has none.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

from kvrt.server.entry import Entry

WAITS = -1


@dataclass(eq=False, slots=True)
class Turn:
    """One answer.

    Args:
        task: its number.
        settings: how its tokens are chosen, as clients are told it.
        entry: of its request.
        wanted: the slot that was asked for; `WAITS`: any.
        said: tokens so far.
        lines: whether it has a new line.
        slot: that it has, or had. The engine may have begun it before the end of another has been
            noticed here: then it has none yet, which is told as the first.
        cached: of the prompt, not computed; None: not known yet.
    """

    task: int
    settings: Mapping[str, Any]
    entry: Entry | None
    wanted: int = WAITS
    said: int = 0
    lines: bool = False
    slot: int = WAITS
    cached: int | None = None

    @property
    def number(self) -> int:
        """Of its slot."""
        return max(0, self.slot)


@dataclass(slots=True)
class Slot:
    """One number.

    Args:
        turn: who has it.
        last: who had it last.
    """

    turn: Turn | None = None
    last: Turn | None = None


class Places:
    """All slots. Belongs to the event loop.

    Args:
        number: how many there are.
    """

    def __init__(self, number: int) -> None:
        self.slots: Sequence[Slot] = [Slot() for _ in range(number)]
        self.waiting: deque[Turn] = deque()
        self._tasks = count()

    @property
    def busy(self) -> int:
        """Slots that somebody has."""
        return sum(slot.turn is not None for slot in self.slots)

    @contextmanager
    def taken(
        self, answers: int, settings: Mapping[str, Any], entry: Entry, wanted: int = WAITS
    ) -> Iterator[Sequence[Turn]]:
        """Turns for the answers of a request, from now until they have ended. Those for which no
        slot is free have one as soon as one is."""
        turns = [Turn(next(self._tasks), settings, entry, wanted) for _ in range(answers)]
        for turn in turns:
            if not self._seat(turn):
                self.waiting.append(turn)
        try:
            yield turns
        finally:
            for turn in turns:
                self._leave(turn)

    def _seat(self, turn: Turn) -> bool:
        free = [at for at, slot in enumerate(self.slots) if slot.turn is None]
        if not free:
            return False
        turn.slot = turn.wanted if turn.wanted in free else free[0]
        self.slots[turn.slot].turn = turn
        return True

    def _leave(self, turn: Turn) -> None:
        if turn.slot == WAITS:
            self.waiting.remove(turn)
            return
        slot = self.slots[turn.slot]
        slot.turn, slot.last = None, turn
        if self.waiting:
            self._seat(self.waiting.popleft())
