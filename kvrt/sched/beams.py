"""Beam search: the likeliest continuations as wholes, not token by token (Lowerre 1976, Harpy).

    live      width beams of equal length, each a sequence of its own in the page table
    advance   of all their continuations the width likeliest live on: a beam that is continued
              twice is forked, one that is not continued is freed
    finished  those that ended in an end token, by their score

Scores are as in Wu et al. 2016 (arXiv 1609.08144, section 7) without its constants: the sum of the
log-probabilities over length ** length_penalty. The search ends when its likeliest beam, as long as
it is now, scores no better than the worst of `width` finished ones, or has `max_tokens`.

Nothing here knows of devices or pages: `kvrt.engine.beaming` does what these decisions ask for.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from kvrt.kv.seq import Seq
from kvrt.outputs import TokenLogprobs


@dataclass(frozen=True, slots=True, eq=False)
class Beam:
    """New tokens behind the prompt, as a chain from the last one back: beams share beginnings.

    Args:
        total: sum of the log-probabilities.
        length: how many tokens.
        last: the last one; None: there is none yet.
        before: the beam that it continues.
    """

    total: float = 0.0
    length: int = 0
    last: TokenLogprobs | None = None
    before: "Beam | None" = None

    def then(self, token: TokenLogprobs) -> "Beam":
        return Beam(self.total + token.logprob, self.length + 1, token, self)

    @property
    def tokens(self) -> list[TokenLogprobs]:
        """All of them, the first one first."""
        return list(self._backwards())[::-1]

    @property
    def token_ids(self) -> list[int]:
        return [token.token_id for token in self.tokens]

    def _backwards(self) -> Iterator[TokenLogprobs]:
        beam: Beam | None = self
        while beam is not None and beam.last is not None:
            yield beam.last
            beam = beam.before


ROOT = Beam()


@dataclass(frozen=True, slots=True)
class Finished:
    """A beam that ended, and its score."""

    beam: Beam
    score: float


class BeamSearch:
    """One search.

    Args:
        width: beams that live at once.
        max_tokens: a beam ends when it is so long.
        ends: tokens that end a beam.
        length_penalty: 0: the likeliest wins; above 0, longer ones are preferred more and more.
    """

    def __init__(
        self, width: int, max_tokens: int, ends: frozenset[int], length_penalty: float
    ) -> None:
        self.width = width
        self.live: list[Beam] = [ROOT]
        self.finished: list[Finished] = []
        self._max_tokens = max_tokens
        self._ends = ends
        self._length_penalty = length_penalty

    @property
    def choices(self) -> int:
        """How many of a beam's likeliest continuations `advance` needs: should all end tokens be
        among them, and all others fall behind, there are still enough to go on."""
        return self.width + len(self._ends)

    @property
    def common(self) -> int:
        """How many first tokens all live beams have in common."""
        columns = zip(*(beam.token_ids for beam in self.live), strict=True)
        return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))

    def advance(self, offers: Sequence[Sequence[TokenLogprobs]]) -> list[int]:
        """Take the next token.

        Args:
            offers: for each live beam its `choices` likeliest continuations, or all there are.

        Returns:
            For each beam that lives now, which of the beams before it continues, ascending. If it
            is empty, the search has ended.
        """
        ranked = sorted(
            (
                (beam.total + token.logprob, parent, token)
                for parent, (beam, offer) in enumerate(zip(self.live, offers, strict=True))
                for token in offer
            ),
            key=lambda entry: -entry[0],
        )
        going: list[tuple[int, Beam]] = []
        for place, (_, parent, token) in enumerate(ranked):
            beam = self.live[parent].then(token)
            if self.why_ended(beam) is None:
                going.append((parent, beam))
            elif place < self.width:
                self.finished.append(Finished(beam, self._score(beam)))
            if len(going) == self.width:
                break
        self.finished.sort(key=lambda finished: -finished.score)
        del self.finished[self.width :]
        if self._decided(going):
            self.live = []
            return []
        going.sort(key=lambda entry: entry[0])
        self.live = [beam for _, beam in going]
        return [parent for parent, _ in going]

    def best(self, count: int) -> list[Finished]:
        """The best so far: finished ones, and if they are too few, live ones."""
        live = sorted(
            (Finished(beam, self._score(beam)) for beam in self.live), key=lambda f: -f.score
        )
        return list(itertools.islice((*self.finished, *live), count))

    def why_ended(self, beam: Beam) -> Literal["stop", "length"] | None:
        """Why a beam cannot go on; None: it could."""
        if beam.last is not None and beam.last.token_id in self._ends:
            return "stop"
        return "length" if beam.length >= self._max_tokens else None

    def _decided(self, going: Sequence[tuple[int, Beam]]) -> bool:
        if not going:
            return True
        if len(self.finished) < self.width:
            return False
        return self._score(going[0][1]) <= self.finished[-1].score

    def _score(self, beam: Beam) -> float:
        return beam.total / math.pow(max(1, beam.length), self._length_penalty)


@dataclass(slots=True)
class Beams:
    """A search whose live beams are sequences.

    Args:
        search: decides.
        seqs: one for each live beam, in order. Or a single one that stands for all of them: the
            prompt and what they have in common, to be computed before they part.
        offers: continuations of those whose logits are known already.
    """

    search: BeamSearch
    seqs: list[Seq]
    offers: dict[Seq, list[TokenLogprobs]] = field(default_factory=dict)

    @property
    def gathered(self) -> bool:
        """Whether one sequence stands for several beams."""
        return len(self.seqs) < len(self.search.live)
