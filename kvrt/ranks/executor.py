"""The executor of several ranks: rank 0's own, and what the others are told to do alike.

    commit    ATTEMPT to all, each tries and says yes or no; then SETTLE to all, or UNDO
    launch    STEP to all; within it they talk by collectives
    copies    COPY to all; a page off the device is the pages of all ranks, one behind the other

Plans are numbers of chunks and pages, which mean the same on every rank (`Shard.kept`).
"""

import json
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from kvrt.errors import IntegrityError, OutOfMemory
from kvrt.executor.interface import (
    Applied,
    ExecutorStats,
    Failed,
    PageCopy,
    Running,
    Save,
    Step,
)
from kvrt.executor.local import LocalExecutor
from kvrt.kv.pages.ops import Op
from kvrt.model.shard import Split
from kvrt.ranks.link import Kind
from kvrt.ranks.messages import StepWriter, digest_of, ops_to_bytes
from kvrt.ranks.others import Others
from kvrt.spi import Done, KVFormat, Ticket

COMPARE_STEPS = 64
"""So often all ranks compare what is mapped, and their rows of the page table."""


class RanksExecutor:
    """A `kvrt.executor.interface.Executor`. Belongs to the engine's thread.

    Args:
        own: rank 0's, which is closed with it.
        others: told alike.
        split: rank 0.
        keys: how keys and values are kept.
        pages: of each group, that addresses are reserved for.

    Raises:
        KvrtError: a rank could not make its own.
    """

    def __init__(
        self, own: LocalExecutor, others: Others, split: Split, keys: KVFormat, pages: int
    ) -> None:
        self._own = own
        self._others = others
        self._world = split.world
        self.info, self.layouts, self.geometries = own.info, own.layouts, own.geometries
        self.poison = own.poison
        self.host_bytes = tuple(size * self._world.size for size in own.host_bytes)
        self._writer = StepWriter()
        self._steps = 0
        asked = json.dumps({"keys": keys, "pages": pages}).encode()
        for rank, answer in others.ask(Kind.CACHE, asked).items():
            if json.loads(answer) != repr(self.geometries):
                raise IntegrityError(
                    f"rank {rank} has pages of {json.loads(answer)}, and rank 0 of"
                    f" {self.geometries}"
                )

    # --- pages -------------------------------------------------------------------------------

    def commit(self, ops: Sequence[Op]) -> Applied | Failed:
        self._others.tell(Kind.ATTEMPT, ops_to_bytes(ops))
        try:
            attempt = self._own.attempt(ops)
        except BaseException:
            self._others.answers()
            self._others.tell(Kind.UNDO)
            raise
        votes = self._others.answers()
        failed = [attempt] if isinstance(attempt, Failed) else []
        failed += [
            Failed(_out_of_memory(rank, answer))
            for rank, answer in votes.items()
            if json.loads(answer) is not None
        ]
        if failed or isinstance(attempt, Failed):
            self._others.tell(Kind.UNDO)
            if not isinstance(attempt, Failed):
                attempt.undo()
            return failed[0]
        self._others.tell(Kind.SETTLE)
        applied = self._own.settle(attempt)
        if isinstance(applied, Failed):  # others have gone on
            raise self._others.blame(applied.error)
        return applied

    def copies(self, moves: Sequence[PageCopy]) -> list[Ticket]:
        if moves:
            told = [[isinstance(move, Save), move.page, move.group] for move in moves]
            self._others.tell(Kind.COPY, json.dumps(told).encode())
            self._own.finish()
        try:
            for move in moves:
                self._copy(move)
        except BaseException as error:
            raise self._others.blame(error) from error
        return [Done() for _ in moves]

    def _copy(self, move: PageCopy) -> None:
        here = self._own.page(move.page, move.group)
        first, *others = torch.split(move.host, len(here))
        if isinstance(move, Save):
            first.copy_(here)
        else:
            here.copy_(first)
        passing = torch.empty_like(here)
        for rank, part in enumerate(others, 1):
            if isinstance(move, Save):
                self._world.receive(passing, rank)
                part.copy_(passing)
            else:
                passing.copy_(part)
                self._world.send(passing, rank)

    def host_buffer(self, nbytes: int) -> Tensor:
        return self._own.host_buffer(nbytes)

    def finish(self) -> None:
        self._own.finish()

    # --- chunks ------------------------------------------------------------------------------

    @property
    def mapped_chunks(self) -> int:
        return self._own.mapped_chunks

    @property
    def pooled_chunks(self) -> int:
        return self._own.pooled_chunks

    def fill(self, chunks: int) -> None:
        if chunks <= self._own.pooled_chunks:
            return
        self._others.tell(Kind.FILL, json.dumps(chunks).encode())
        try:
            self._own.fill(chunks)
        finally:
            answers = self._others.answers()
        for rank, answer in answers.items():
            if json.loads(answer) is not None:
                raise _out_of_memory(rank, answer)

    def drain(self, chunks: int = 0) -> None:
        self._others.tell(Kind.DRAIN, json.dumps(chunks).encode())
        self._own.drain(chunks)

    # --- looking -----------------------------------------------------------------------------

    def stats(self) -> ExecutorStats:
        return self._own.stats()

    def check(self, mapped: Sequence[Collection[int]]) -> None:
        self._own.check(mapped)
        self._compare()

    def _compare(self) -> None:
        """Raises `IntegrityError` if a rank has other pages than rank 0."""
        own = digest_of(self._own.mapped, self._writer.pages)
        for rank, answer in self._others.ask(Kind.DIGEST).items():
            if json.loads(answer) != own:
                raise IntegrityError(f"rank {rank} has another page table than rank 0")

    def close(self) -> None:
        self._own.close()

    # --- computing ---------------------------------------------------------------------------

    def launch(self, step: Step) -> Running:
        self._steps += 1
        self._others.tell(Kind.STEP, self._writer.write(step))
        try:
            running = self._own.launch(step)
        except BaseException as error:  # the others are in the middle of it
            raise self._others.blame(error) from error
        if self._steps % COMPARE_STEPS == 0:
            self._compare()
        return running


def _out_of_memory(rank: int, answer: bytes) -> OutOfMemory:
    said = json.loads(answer)
    return OutOfMemory(f"rank {rank}: {said['message']}", needed=said["needed"], free=said["free"])
