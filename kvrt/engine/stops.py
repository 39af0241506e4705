"""Stop strings in text that grows, looked for so that many long ones cost little more than none.

    stop strings    abad, bac
    text            a    b    a    c       the state is the longest end of the text that begins one
    state           a    ab   aba  bac     no c follows aba, but the next shorter such end, ba

(Aho and Corasick 1975, "Efficient string matching: an aid to bibliographic search".)
"""

import itertools
from array import array
from collections.abc import Sequence
from typing import NamedTuple


class Found(NamedTuple):
    """What was found in a piece of text.

    Args:
        state: after it.
        at: where in it the first stop string begins, less than 0 if in front of it; None: nowhere.
    """

    state: int
    at: int | None = None


class StopStrings:
    """What to look for in answers, several at once: it does not change. Text begins in state 0.

    States are numbered string by string, so that most are followed by the next number, and a letter
    takes 20 bytes.

    Args:
        stops: strings, each of at least one character.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._first = frozenset(stop[0] for stop in stops)
        self._follows = [""]  # by state: the letter that leads to the next number
        self._branches: dict[tuple[int, str], int] = {}  # where other letters lead
        self._lengths = array("i", [0])
        for stop in stops:
            state = 0
            for length, letter in enumerate(stop, 1):
                state = self._begins(state, letter) or self._add(state, letter, length)
        self._falls = array("i", [0]) * len(self._lengths)  # the next shorter end that begins one
        self._ended = array("i", [0]) * len(self._lengths)  # length of the longest that is complete
        states = [0] * len(stops)
        for column in itertools.zip_longest(*stops):  # shorter ones are done when longer ones fall
            for number, letter in enumerate(column):
                if letter is not None:
                    states[number] = self._fill(states[number], letter, len(stops[number]))

    def _add(self, state: int, letter: str, length: int) -> int:
        """A new state."""
        number = len(self._lengths)
        if number == state + 1:
            self._follows[state] = letter
        else:
            self._branches[state, letter] = number
        self._follows.append("")
        self._lengths.append(length)
        return number

    def _fill(self, before: int, letter: str, whole: int) -> int:
        """Say of the state after `before` where it falls and what ends there."""
        state = self._begins(before, letter)
        falls = self._after(self._falls[before], letter) if before else 0
        complete = whole if self._lengths[state] == whole else 0
        self._falls[state] = falls
        self._ended[state] = max(complete, self._ended[state], self._ended[falls])
        return state

    def _begins(self, state: int, letter: str) -> int:
        """The state one letter longer; 0 if that begins no stop string."""
        if self._follows[state] == letter:
            return state + 1
        return self._branches.get((state, letter), 0)

    def _after(self, state: int, letter: str) -> int:
        """The state when `letter` has come."""
        while not (after := self._begins(state, letter)) and state:
            state = self._falls[state]
        return after

    def find(self, state: int, text: str) -> Found:
        """Look through the next piece of text."""
        if not state and self._first.isdisjoint(text):
            return Found(0)
        first: int | None = None
        for end, letter in enumerate(text, 1):
            state = self._after(state, letter)
            length = self._ended[state]
            if length and (first is None or end - length < first):
                first = end - length
        return Found(state, first)

    def begun(self, state: int) -> int:
        """How many of the last characters may begin a stop string."""
        return self._lengths[state]
