"""Carries ops out on a device: all of them, or none."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Self

from torch import Tensor

from kvrt.errors import OutOfMemory
from kvrt.executor.backing import Backing
from kvrt.executor.interface import Applied, Failed
from kvrt.kv.pages.ops import Copy, Map, Move, Op, Scrub, Unmap


class Attempt:
    """Ops on their way, and how to go back.

        of(ops) --> settle()      they are carried out
                --> undo()        all is as before

    A page that an op writes may belong to a sequence of the *old* table: one that was freed to
    make room. So bytes are written last, by `settle`, when everything that is likely to fail has
    been done: on all workers, where there are several. If a chunk has to go that a write still
    needs, the writes so far are done first, and what they overwrite is kept.
    """

    def __init__(self, backings: Sequence[Backing], poison: bool) -> None:
        self._backings = backings
        self._poison = poison
        self._undo: list[Callable[[], object]] = []
        self._writes: list[tuple[Backing, Tensor, Tensor | None]] = []
        self._needed: set[tuple[Backing, int]] = set()  # chunks
        self._counts = {Map: 0, Unmap: 0, Copy: 0, Move: 0, Scrub: 0}

    @classmethod
    def of(
        cls, ops: Sequence[Op], backings: Sequence[Backing], *, poison: bool = False
    ) -> Self | Failed:
        """Carry out `ops` in order, but for the last writes. If one fails, undo those before it,
        the last first.

        Args:
            backings: of each group.
            poison: scrub each chunk that is mapped, too.

        Raises:
            DeviceError: a call failed for another reason than memory. What was done is undone.
        """
        attempt = cls(backings, poison)
        return attempt._guarded(lambda: attempt._begin(ops)) or attempt

    def settle(self) -> Applied | Failed:
        """Write what is left to write. There is no way back after this.

        Raises:
            DeviceError: a copy failed. What was done is undone, but pages that these ops take from
                one sequence to give to another may be overwritten.
        """
        failed = self._guarded(lambda: self._write(keep_old=False))
        return failed or Applied(self._counts[Map], self._counts[Unmap], self._counts[Copy])

    def undo(self) -> None:
        """Take back what was done."""
        while self._undo:
            self._undo.pop()()

    def _guarded(self, do: Callable[[], None]) -> Failed | None:
        """Do it; if it fails, undo everything."""
        try:
            do()
        except OutOfMemory as error:
            self.undo()
            return Failed(error)
        except BaseException:
            self.undo()
            raise
        return None

    def _begin(self, ops: Sequence[Op]) -> None:
        for op in ops:
            self._do(op)

    def _do(self, op: Op) -> None:
        backing = self._backings[op.group]
        match op:
            case Map(index):
                backing.map(index)
                self._undo.append(partial(backing.unmap, index))
                if self._poison:
                    self._later(backing, backing.chunk(index), None, range(index, index + 1))
            case Unmap(index):
                if (backing, index) in self._needed:
                    self._write(keep_old=True)
                backing.unmap(index)
                self._undo.append(partial(backing.map, index))
            case Copy(src, dst):
                self._needs(backing, backing.geometry.chunks_of(src))
                under = backing.geometry.chunks_of(dst)
                self._later(backing, backing.page(dst), backing.page(src), under)
            case Move(src, src_slot, dst, dst_slot):
                self._needs(backing, backing.geometry.chunks_of(src))
                pieces = zip(
                    backing.token(dst, dst_slot), backing.token(src, src_slot), strict=True
                )
                for to, source in pieces:
                    self._later(backing, to, source, backing.geometry.chunks_of(dst))
            case Scrub(page):
                self._later(backing, backing.page(page), None, backing.geometry.chunks_of(page))
        self._counts[type(op)] += 1

    def _write(self, *, keep_old: bool) -> None:
        """Do the writes that were put off."""
        for backing, dst, src in self._writes:
            if keep_old:
                self._undo.append(partial(backing.copy, dst, dst.clone()))
            if src is None:
                backing.scrub(dst)
            else:
                backing.copy(dst, src)
        self._writes.clear()
        self._needed.clear()

    def _later(self, backing: Backing, dst: Tensor, src: Tensor | None, chunks: range) -> None:
        self._writes.append((backing, dst, src))
        self._needs(backing, chunks)

    def _needs(self, backing: Backing, chunks: range) -> None:
        self._needed.update((backing, chunk) for chunk in chunks)
