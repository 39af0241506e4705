"""Drafts by a small model, or by the model's own predictor, for all sequences that have room for
them in a step.

    plan      rooms for drafts     which sequences may have how many
    apply     their pages
    fill      pass 1               of each sequence, what the small model has not computed yet
              pass 2, 3, ...       a further token each, as long as it pays
    run       the step, with the drafts behind each sequence's own token

The small model's keys and values are in pages of the same table, in groups of their own behind
those of the model that is asked: they fork, move and go with these. They are computed only for who
drafts, so that a sequence may have tokens of which the small model knows nothing yet. What it does
not know it computes again; wrong ones would cost time, and never change a text. A predictor
(`kvrt.model.decoder.predictor`) knows what the model knows, as steps store what it needs.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from kvrt.drafting.drafts import Drafts
from kvrt.drafting.gain import Course
from kvrt.engine.answers import Answers
from kvrt.engine.sampler import Scores
from kvrt.engine.sight import Sight
from kvrt.errors import OutOfMemory
from kvrt.executor.interface import Executor
from kvrt.kv.memory import Memory
from kvrt.kv.pages.table import Change
from kvrt.kv.seq import Seq
from kvrt.sched.plan import Limits, Row
from kvrt.sched.speculation import Speculation

MOST_KNOWN = 1 << 16
"""Names of pages that are remembered as computed by the small model, too."""


class _Span(NamedTuple):
    """Tokens of a row that the small model computes: from `start` on."""

    row: Row
    start: int
    tokens: Sequence[int]


class _Pass(NamedTuple):
    """A pass over so many tokens of so many sequences, and the time that it took."""

    tokens: int
    sequences: int
    seconds: float


class Guessing:
    """Belongs to the engine's thread.

    Args:
        executor: runs the small model, too.
        memory: with its pages.
        answers: choose drafts as they choose tokens.
        speculation: knows what drafts are worth, and asks how far the small model is.
        limits: of a pass.
        sight: the predictor's, if that drafts; None: a small model does.
    """

    def __init__(
        self,
        executor: Executor,
        memory: Memory,
        answers: Answers,
        speculation: Speculation,
        limits: Limits,
        sight: Sight | None = None,
    ) -> None:
        assert speculation.gain is not None, "there is a model that drafts"
        self._executor = executor
        self._memory = memory
        self._answers = answers
        self._gain = speculation.gain
        self._odds = speculation.odds
        self._most = limits.max_batch_tokens
        self._sight = sight
        speculation.lag = self.lag
        self._known: dict[bytes, None] = {}

    def lag(self, seq: Seq) -> int:
        """Tokens of a sequence that the small model has to compute before it can guess."""
        if self._sight is not None:
            seq.drafted = seq.computed
            return len(seq.tokens) - seq.drafted
        seq.drafted = min(seq.drafted, seq.computed)
        if not seq.drafted:
            names = seq.names[: seq.computed // self._memory.cache.page_size]
            known = next((n for n, name in enumerate(names) if name.key not in self._known), None)
            found = len(names) if known is None else known
            seq.drafted = found * self._memory.cache.page_size
        return len(seq.tokens) - seq.drafted

    def fill(self, rows: Sequence[Row], rooms: Mapping[Seq, int]) -> list[Row]:
        """The rows, with drafts in those that have room for them."""
        begun = time.perf_counter()
        course = self._gain.course(sum(row.count for row in rows), sum(row.samples for row in rows))
        guessing = [row for row in rows if row.seq in rooms]
        lines: dict[Seq, list[int]] = {row.seq: [] for row in guessing}
        self._odds.clear()
        self._odds.update((row.seq, []) for row in guessing)
        passes: list[_Pass] = []
        with suppress(OutOfMemory):  # a step without drafts needs less
            self._guess(guessing, rooms, course, lines, passes)
        filled = [self._with(row, lines.get(row.seq, [])) for row in rows]
        change = Change(self._memory.cache.table)
        for row in filled:
            if row.seq in rooms and len(row.drafts) < rooms[row.seq]:
                change = change.then(change.table.truncate(row.seq.id, row.start + row.count))
        self._memory.commit(change)
        self._learn(passes, time.perf_counter() - begun)
        return filled

    def _learn(self, passes: Sequence[_Pass], seconds: float) -> None:
        """What passes cost: each bears its share of what was done around all of them."""
        for tokens, sequences, own in passes:
            around = (seconds - sum(each.seconds for each in passes)) / len(passes)
            cost = self._gain.passes if tokens == sequences else self._gain.reading
            cost.observe(tokens, own + around)

    @staticmethod
    def _with(row: Row, line: Sequence[int]) -> Row:
        if not line:
            return row
        drafts = Drafts(tuple(line), tuple(range(-1, len(line) - 1)))
        return replace(row, count=row.count + len(line), drafts=drafts)

    def _guess(
        self,
        rows: Sequence[Row],
        rooms: Mapping[Seq, int],
        course: Course,
        lines: dict[Seq, list[int]],
        passes: list[_Pass],
    ) -> None:
        chances = {row.seq: 1.0 for row in rows}
        active = list(rows)
        while active:
            begun = time.perf_counter()
            spans = [self._span(row, lines[row.seq]) for row in active]
            scores = Scores(self._pass(spans))
            course.spend(len(spans))
            going = []
            for at, row in enumerate(active):
                seq, line = row.seq, lines[row.seq]
                token = self._answers.guess(seq, line, scores, at)
                if token is None:
                    continue
                probability = scores.probability(at, token)
                chance = chances[seq] * self._gain.chance(probability)
                if line and not course.worth(chance):
                    continue
                chances[seq] = chance
                line.append(token)
                self._odds[seq].append(probability)
                course.add(chance)
                if len(line) < rooms[seq] and token not in self._answers.ends(seq):
                    going.append(row)
            tokens = sum(len(span.tokens) for span in spans)
            passes.append(_Pass(tokens, len(spans), time.perf_counter() - begun))
            active = going
            while active and not course.pays([chances[row.seq] for row in active]):
                active.remove(min(active, key=lambda row: chances[row.seq]))

    def _span(self, row: Row, line: Sequence[int]) -> _Span:
        seq = row.seq
        if line:
            return _Span(row, row.start + len(line), line[-1:])
        return _Span(row, seq.drafted, seq.tokens[seq.drafted : row.start + 1])

    def _pass(self, spans: Sequence[_Span]) -> Tensor:
        """Compute all tokens of the spans: the logits behind each, float32 [spans, vocab], on the
        host."""
        found: list[Tensor] = []
        batch: list[_Span] = []
        room = self._most
        for span in spans:
            while len(span.tokens) > room:
                if room:
                    batch.append(span._replace(tokens=span.tokens[:room]))
                    span = _Span(span.row, span.start + room, span.tokens[room:])
                found.append(self._run(batch, cut=bool(room)))
                batch, room = [], self._most
            batch.append(span)
            room -= len(span.tokens)
        found.append(self._run(batch))
        return found[0] if len(found) == 1 else torch.cat(found)

    def _run(self, spans: Sequence[_Span], *, cut: bool = False) -> Tensor:
        """One pass. `cut`: the last span has more to come."""
        counts = [len(span.tokens) for span in spans]
        ends = [end - 1 for end in itertools.accumulate(counts)]
        step = self._memory.cache.step(
            [span.row.seq.id for span in spans],
            counts,
            [token for span in spans for token in span.tokens],
            ends[: len(spans) - cut],
            contexts=[span.start + len(span.tokens) for span in spans],
        )
        turns = None
        if self._sight is not None:
            turns = self._sight.turns(
                [
                    replace(span.row, start=span.start, count=count)
                    for span, count in zip(spans, counts, strict=True)
                ]
            )
        running = self._executor.launch(step._replace(drafting=True, turns=turns))
        if self._sight is None:
            for span in spans:
                self._computed(span.row.seq, span.start + len(span.tokens))
        return running.logits.cpu()

    def _computed(self, seq: Seq, length: int) -> None:
        """The small model has computed the first tokens of a sequence. Whoever begins with its
        named pages need not do so again."""
        size = self._memory.cache.page_size
        before, seq.drafted = seq.drafted, length
        for name in seq.names[before // size : min(length, seq.computed) // size]:
            self._known.pop(name.key, None)
            self._known[name.key] = None
        while len(self._known) > MOST_KNOWN:
            del self._known[next(iter(self._known))]
