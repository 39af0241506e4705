"""One sequence's guesses, and how many of them are worth computing."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from kvrt.drafting.drafts import NO_DRAFTS, Drafts
from kvrt.drafting.lookup import NO_GUESS, Guess, Proposer


@dataclass(slots=True)
class Drafter:
    """One sequence's guesses, and how often they came true.

    Guesses are compared with what came, also those that were not worth drafting: so that a text
    that begins to repeat itself is noticed, and one that does not costs nothing but the look. And
    after looking in vain for a while, not every token is looked at.

    Args:
        proposer: makes the guesses; None: nothing is guessed but what is forced.
        limit: tokens that are drafted at once, over all branches.
    """

    proposer: Proposer | None
    limit: int
    guess: Guess = NO_GUESS
    _true: list[float] = field(default_factory=lambda: [0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6])
    _other: float = 0.2
    _forced: float = 0.8
    _known: int = 0  # tokens that were looked at
    _vain: int = 0  # looks since a guess came true

    RATE = 0.15
    VAIN = 8  # looks in vain, for each of which one token more passes until the next look
    SELDOM = 8  # but at least one in so many tokens is looked at

    def observe(self, tokens: Sequence[int], forced: Sequence[int] = ()) -> None:
        """The sequence has these tokens now: learn from those that are new, and guess again.

        Args:
            forced: what must come next; see `Guess.forced`.
        """
        length = len(tokens)
        if self.guess.branches:
            self._learn(tokens[self._known :])
            self.guess = NO_GUESS
        elif not forced and length < self._known + min(self._vain // self.VAIN, self.SELDOM):
            return
        self._known = length
        if forced:
            self.guess = Guess((tuple(forced[: self.limit]),), forced=True)
            return
        if self.proposer is None:
            return
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
        return self._forced if self.guess.forced else self._true[self._kind(at)]

    def _kind(self, at: int) -> int:
        return min(self.guess.match - 2 + at, len(self._true) - 1)

    def _learn(self, came: Sequence[int]) -> None:
        for at, branches in enumerate(zip(came, *self.guess.branches, strict=False)):
            token, *guesses = branches
            if not guesses:
                return
            hit = token == guesses[0]
            if self.guess.forced:
                self._forced += self.RATE * (hit - self._forced)
                if not hit:
                    return
                continue
            self._vain = 0 if hit else self._vain
            kind = self._kind(at)
            self._true[kind] += self.RATE * (hit - self._true[kind])
            if not hit:
                if at == 0 and len(guesses) > 1:
                    self._other += self.RATE * ((token == guesses[1]) - self._other)
                return
