"""The forward pass of a step, in pieces where the device has not the memory to do it at once."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from kvrt.engine.sight import Sight
from kvrt.errors import OutOfMemory
from kvrt.executor.interface import Executor, Running
from kvrt.kv.cache import KVCache
from kvrt.kv.seq import Seq
from kvrt.sched.plan import Row
from kvrt.sched.speculation import parents_of

log = logging.getLogger(__name__)

PATIENCE = 64
"""After so many steps without running out of memory, twice as many tokens are tried at once."""

WITHOUT_END = 1 << 62


class Scored(NamedTuple):
    """A row, and the positions in it whose logits give log-probabilities of the prompt."""

    row: Row
    positions: range


class NoRoom(OutOfMemory):
    """The device has not the memory for the least that can be computed of a sequence.

    Args:
        seq: whose.
    """

    def __init__(self, seq: Seq, error: OutOfMemory) -> None:
        super().__init__(str(error), needed=error.needed, free=error.free)
        self.seq = seq


class Forward:
    """Belongs to the engine's thread.

    Activations are as large as a step has tokens, and come from the memory that pages have left
    over. If they do not fit, spare pages go back and the pass is tried again; then it is done in
    pieces of half as many tokens, and so are the next ones. No sequence has advanced before all of
    them are done, and what a piece has stored is stored again where it is repeated.

    Args:
        executor: computes.
        cache: the KV pages in it.
        sight: what the model sees.
    """

    def __init__(self, executor: Executor, cache: KVCache, sight: Sight) -> None:
        self._executor = executor
        self._cache = cache
        self._sight = sight
        self._most = WITHOUT_END
        self._calm = 0

    def run(self, rows: Sequence[Row], scored: Sequence[range]) -> Running:
        """Of each row, logits at scored positions, at the sample, at drafts: float32 [_, vocab].

        Raises:
            NoRoom: not even one row, of one token or with its drafts, can be computed.
            DeviceError: the pass failed.
        """
        left = [Scored(row, positions) for row, positions in zip(rows, scored, strict=True)]
        done: list[Running] = []
        tried_again = False
        self._be_bold()
        while left:
            piece, rest = cut(left, self._most)
            try:
                done.append(self._pass(piece))
            except OutOfMemory as error:
                self._calm = 0
                if not tried_again:
                    tried_again = True
                    self._cache.give_spare()
                    continue
                self._be_modest(piece, error)
            else:
                left = rest
        if len(done) == 1:
            return done[0]
        return Running(torch.cat([each.logits for each in done]), done[-1].fence)

    def _pass(self, piece: Sequence[Scored]) -> Running:
        tokens: list[int] = []
        wanted: list[int] = []
        rows = [each.row for each in piece]
        for row, positions in piece:
            wanted += [len(tokens) + at - row.start for at in positions]
            tokens += row.seq.tokens[row.start : row.start + row.count - len(row.drafts)]
            if row.samples:
                wanted += range(len(tokens) - 1, len(tokens) + len(row.drafts))
            tokens += row.drafts.tokens
        adapters = [row.seq.adapter for row in rows]
        step = self._cache.step(
            [row.seq.id for row in rows],
            [row.count for row in rows],
            tokens,
            wanted,
            parents=parents_of(rows),
            contexts=[row.start + row.count for row in rows],
            adapters=adapters if any(adapters) else None,
        )
        sight = self._sight
        return self._executor.launch(step._replace(seen=sight.seen(rows), turns=sight.turns(rows)))

    def _be_modest(self, piece: Sequence[Scored], error: OutOfMemory) -> None:
        tokens = sum(each.row.count for each in piece)
        half = -(-tokens // 2)
        if len(piece) == 1 and cut(piece, half)[0] == piece:
            raise NoRoom(piece[0].row.seq, error) from error
        self._most = half
        log.warning("no memory for a step of %d tokens (%s); going on with fewer", tokens, error)

    def _be_bold(self) -> None:
        self._calm += 1
        if self._calm > PATIENCE and self._most < WITHOUT_END:
            self._most, self._calm = 2 * self._most, 0


def cut(rows: Sequence[Scored], most: int) -> tuple[list[Scored], list[Scored]]:
    """A piece of at most `most` tokens, and what is left.

    A row is cut in two where need be, but one with drafts, and an image whose tokens see each
    other: they are pieces by themselves then.
    """
    piece: list[Scored] = []
    rest = list(rows)
    while rest and most > 0:
        row, positions = rest[0]
        count = row.count if row.drafts else _fitting(row, most)
        if count > most and piece:
            break
        if count == row.count:
            piece.append(rest.pop(0))
        else:
            first, rest[0] = _in_two(row, positions, count)
            piece.append(first)
        most -= row.count
    return piece, rest


def _fitting(row: Row, most: int) -> int:
    """How many of a row's tokens are a piece of at most `most`, if any so few are."""
    if row.count <= most:
        return row.count
    return row.seq.uncut(row.start, most) or min(row.count, row.seq.least(row.start))


def _in_two(row: Row, positions: range, count: int) -> Iterator[Scored]:
    border = row.start + count
    at = min(max(border, positions.start), positions.stop)
    yield Scored(replace(row, count=count, samples=False), range(positions.start, at))
    later = replace(row, start=border, count=row.count - count)
    yield Scored(later, range(at, positions.stop))
