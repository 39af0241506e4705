"""Stop strings in text that grows, looked for so that many long ones cost no more than a few."""

import bisect
from collections.abc import Sequence


class StopStrings:
    """What to look for at the end of an answer.

    Args:
        stops: strings, each of at least one character.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._by_length = sorted(stops, key=len)
        self._sorted = sorted(stops)
        self._first = frozenset(stop[0] for stop in stops)

    def find(self, text: str, known: int) -> int:
        """Where the first one begins that is in `text`, or -1.

        Args:
            known: so many of the first characters are known to hold none.
        """
        if self._first.isdisjoint(text):
            return -1
        first = -1
        for stop in self._by_length:
            if len(stop) > len(text):
                break
            at = text.find(stop, max(0, known - len(stop) + 1))
            if at >= 0 and (first < 0 or at < first):
                first = at
        return first

    def begun(self, text: str) -> int:
        """How many of the last characters of `text`, which holds none, may begin one."""
        if self._first.isdisjoint(text):
            return 0
        for at, letter in enumerate(text):
            if letter in self._first and self._begins(text[at:]):
                return len(text) - at
        return 0

    def _begins(self, text: str) -> bool:
        """Whether one begins with `text`: if any does, so does the next one in their order."""
        at = bisect.bisect_left(self._sorted, text)
        return at < len(self._sorted) and self._sorted[at].startswith(text)
