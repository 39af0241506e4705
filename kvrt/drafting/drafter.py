"""Speculation: guesses at a sequence's next tokens, to be verified several in one step.

    tokens      ... for line in file : ... for line in        the same two tokens, seen before
                             |---------------|
    drafts                                            file :

Verification draws at each position what the sampler would draw there, and goes on while that is
what was guessed (Leviathan et al. 2023, arXiv 2211.17192, for draws that are functions of seed and
position). So drafts decide how many steps a text takes, and never what it says.

Guesses come from the text itself (prompt lookup: Saxena 2023). They are free, unlike those of a
smaller model, but computing one takes time: how many are worth it depends on how often they came
true before (`Drafter`) and on what a further token of a step costs (`StepCost`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

INDEXED_AT_ONCE = 4096
"""Tokens of a long prompt that are indexed in one step at most: about 2 ms."""


@dataclass(frozen=True, slots=True)
class Drafts:
    """A tree of guesses that begins behind a sequence's last token.

    Args:
        tokens: of each node; parents come before their children.
        parents: of each node; -1: it follows the sequence's last token.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()

    @classmethod
    def of(cls, branches: Sequence[Sequence[int]]) -> "Drafts":
        """Branches whose first tokens differ."""
        tokens: list[int] = []
        parents: list[int] = []
        for branch in branches:
            parents += [-1, *range(len(tokens), len(tokens) + len(branch) - 1)][: len(branch)]
            tokens += branch
        return cls(tuple(tokens), tuple(parents))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def branches(self) -> bool:
        """Whether a node does not follow the one before it."""
        return self.parents != tuple(range(-1, len(self.parents) - 1))

    def line(self, node: int) -> list[int]:
        """The tokens from the beginning to `node`."""
        line: list[int] = []
        while node >= 0:
            line.append(self.tokens[node])
            node = self.parents[node]
        return line[::-1]

    def path(self, follows: Callable[[int], int]) -> list[int]:
        """The nodes that came true, in order.

        Args:
            follows: draws the token behind the sequence's last token (-1), or behind a node; asked
                of those that came true only.
        """
        path: list[int] = []
        last, drawn = -1, follows(-1)
        for node, (token, parent) in enumerate(zip(self.tokens, self.parents, strict=True)):
            if parent == last and token == drawn:
                path.append(node)
                last, drawn = node, follows(node)
        return path


NO_DRAFTS = Drafts()


@dataclass(frozen=True, slots=True)
class Guess:
    """What may come next.

    Args:
        branches: continuations, the likeliest first; their first tokens differ.
        match: how many tokens before it agree with where the first one was found.
    """

    branches: tuple[tuple[int, ...], ...] = ()
    match: int = 0


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


@dataclass(slots=True)
class Drafter:
    """One sequence's guesses, and how often they came true.

    Guesses are compared with what came, also those that were not worth drafting: so that a text
    that begins to repeat itself is noticed, and one that does not costs nothing but the look. And
    after looking in vain for a while, not every token is looked at.

    Args:
        proposer: makes the guesses.
        limit: tokens that are drafted at once, over all branches.
    """

    proposer: Proposer
    limit: int
    guess: Guess = NO_GUESS
    _true: list[float] = field(default_factory=lambda: [0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6])
    _other: float = 0.2
    _known: int = 0  # tokens that were looked at
    _vain: int = 0  # looks since a guess came true

    RATE = 0.15
    VAIN = 8  # looks in vain, for each of which one token more passes until the next look
    SELDOM = 8  # but at least one in so many tokens is looked at

    def observe(self, tokens: Sequence[int]) -> None:
        """The sequence has these tokens now: learn from those that are new, and guess again."""
        length = len(tokens)
        if self.guess.branches:
            self._learn(tokens[self._known :])
            self.guess = NO_GUESS
        elif length < self._known + min(self._vain // self.VAIN, self.SELDOM):
            return
        self._known = length
        self._vain += 1
        self.guess = self.proposer.propose(tokens, self.limit)

    def drafts(self, room: int, worth: float, *, trees: bool) -> Drafts:
        """The part of the guess that is worth computing.

        Args:
            room: tokens that may be drafted.
            worth: probability from which on a token is worth computing.
            trees: whether there may be more than one branch.
        """
        room = min(room, self.limit)
        if not self.guess.branches or room <= 0:
            return NO_DRAFTS
        first, *others = self.guess.branches
        branches = [first[: self._length(room, worth, 1.0)]]
        if others and trees and branches[0]:
            seldom = (1 - self._chance(0)) * self._other / self._chance(0)
            rest = self._length(room - len(branches[0]), worth, seldom)
            branches.append(others[0][:rest])
        return Drafts.of([branch for branch in branches if branch])

    def _length(self, room: int, worth: float, chance: float) -> int:
        """How many tokens of a branch are likely enough."""
        for at in range(room):
            chance *= self._chance(at)
            if chance < worth:
                return at
        return max(0, room)

    def _chance(self, at: int) -> float:
        """That the guess comes true at a place, if it has up to there."""
        return self._true[self._kind(at)]

    def _kind(self, at: int) -> int:
        return min(self.guess.match - 2 + at, len(self._true) - 1)

    def _learn(self, came: Sequence[int]) -> None:
        for at, branches in enumerate(zip(came, *self.guess.branches, strict=False)):
            token, *guesses = branches
            if not guesses:
                return
            hit = token == guesses[0]
            self._vain = 0 if hit else self._vain
            kind = self._kind(at)
            self._true[kind] += self.RATE * (hit - self._true[kind])
            if not hit:
                if at == 0 and len(guesses) > 1:
                    self._other += self.RATE * ((token == guesses[1]) - self._other)
                return


class StepCost:
    """How long a step takes by the number of its tokens: a straight line through the latest ones.

    Before steps of different sizes were seen, a step is taken to cost as much as 8 further tokens
    on top of its own.
    """

    DECAY = 0.97
    PRIOR_TOKENS = 8.0
    PRIOR_WEIGHT = 1.0

    def __init__(self) -> None:
        self._weight = self._tokens = self._seconds = self._squares = self._products = 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        """A step of decoding was made."""
        if self._weight > 1:  # one that was disturbed tells little
            seconds = min(seconds, 3 * self._seconds / self._weight)
        for name, value in (
            ("_weight", 1.0),
            ("_tokens", tokens),
            ("_seconds", seconds),
            ("_squares", tokens * tokens),
            ("_products", tokens * seconds),
        ):
            setattr(self, name, self.DECAY * getattr(self, name) + value)

    def worth(self, tokens: int) -> float:
        """The probability from which on one more token pays in a step that yields `tokens`.

        It costs b seconds of a step of T that gives a token in T / `tokens`: so ``b * tokens / T``.
        """
        if not self._weight:
            return tokens / (self.PRIOR_TOKENS + tokens)
        mean_tokens, mean = self._tokens / self._weight, self._seconds / self._weight
        spread = max(0.0, self._squares / self._weight - mean_tokens**2)
        together = self._products / self._weight - mean_tokens * mean
        prior = mean / (self.PRIOR_TOKENS + mean_tokens)
        slope = (together + self.PRIOR_WEIGHT * prior) / (spread + self.PRIOR_WEIGHT)
        slope = min(max(slope, 0.0), mean / mean_tokens)
        step = mean + slope * (tokens - mean_tokens)
        return min(1.0, slope * tokens / step) if step > 0 else 1.0
