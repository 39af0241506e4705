"""Guesses from the text itself (prompt lookup: Saxena 2023), which cost no model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

INDEXED_AT_ONCE = 4096
"""Tokens of a long prompt that are indexed in one step at most: about 2 ms."""


@dataclass(frozen=True, slots=True)
class Guess:
    """What may come next.

    Args:
        branches: continuations, the likeliest first; their first tokens differ.
        match: how many tokens before it agree with where the first one was found.
        forced: it is no guess from the text, but what a constraint leaves, in the tokens that the
            tokenizer would take; the model may take others for the same text.
    """

    branches: tuple[tuple[int, ...], ...] = ()
    match: int = 0
    forced: bool = False


NO_GUESS = Guess()


class Proposer(Protocol):
    """Guesses at the continuation of one sequence, which only grows."""

    def propose(self, tokens: Sequence[int], limit: int) -> Guess:
        """At most `limit` tokens a branch; none if there is no good guess."""


class PromptLookup:
    """Finds the latest tokens in the text before them, and proposes what followed there.

    The ends of all pairs of tokens are indexed as the text grows. Of the latest places where the
    last pair stood, the one counts that agrees with the longest text before it; another, with
    another token behind it, gives a second branch. A text that repeats itself is continued
    periodically beyond its end.
    """

    LONGEST = 8  # agreeing tokens, beyond which more say little
    PLACES = 8

    def __init__(self) -> None:
        self._ends: dict[tuple[int, int], list[int]] = {}
        self._indexed = 1

    def propose(self, tokens: Sequence[int], limit: int) -> Guess:
        length = len(tokens)
        stop = min(length, self._indexed + INDEXED_AT_ONCE)
        ends = self._ends
        for end in range(self._indexed + 1, stop):
            ends.setdefault((tokens[end - 2], tokens[end - 1]), []).append(end)
        self._indexed = max(self._indexed, stop - 1)
        if stop < length or length < 2:
            return NO_GUESS
        places = ends.get((tokens[-2], tokens[-1]))
        if places is None:
            return NO_GUESS
        best: tuple[int, int] | None = None  # match, place
        other: tuple[int, int] | None = None
        for place in reversed(places[-self.PLACES :]):
            found = (self._match(tokens, place), place)
            if best is None:
                best = found
            elif tokens[place] == tokens[best[1]]:
                best = max(best, found, key=_match_of)
            elif found[0] > best[0]:
                best, other = found, best
            elif other is None or found[0] > other[0]:
                other = found
        assert best is not None, "an indexed pair has a place"
        branches = [_continuation(tokens, best[1], limit)]
        if other is not None and tokens[other[1]] != branches[0][0]:
            branches.append(_continuation(tokens, other[1], limit))
        return Guess(tuple(branches), best[0])

    def _match(self, tokens: Sequence[int], place: int) -> int:
        """How many tokens before `place` agree with the last ones; two do."""
        most = min(self.LONGEST, place)
        match, last = 2, len(tokens)
        while match < most and tokens[place - match - 1] == tokens[last - match - 1]:
            match += 1
        return match


def _match_of(found: tuple[int, int]) -> int:
    return found[0]


def _continuation(tokens: Sequence[int], place: int, limit: int) -> tuple[int, ...]:
    line = list(tokens[place : place + limit])
    period = len(tokens) - place
    while len(line) < limit:
        line.append(line[-period])
    return tuple(line)
