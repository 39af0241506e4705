"""Carries ops out on a device: all of them, or none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from kvrt.errors import OutOfMemory
from kvrt.kv.pages.backing import Backing
from kvrt.kv.pages.ops import Copy, Map, Move, Op, Scrub, Unmap


@dataclass(frozen=True, slots=True)
class Applied:
    """Every op was carried out: so many of each kind."""

    maps: int
    unmaps: int
    copies: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The device had no memory left. Nothing was changed: what was done is undone."""

    error: OutOfMemory


def apply(
    ops: Sequence[Op], backings: Sequence[Backing], *, poison: bool = False
) -> Applied | Failed:
    """Carry out `ops` in order. If one fails, undo those before it, the last first.

    Args:
        backings: of each group.
        poison: scrub each chunk that is mapped, too.

    Raises:
        DeviceError: a call failed for another reason than memory. What was done is undone, but if
            it was a copy that failed, pages that these ops take from one sequence to give to
            another may be overwritten.
    """
    transaction = _Transaction(backings, poison)
    try:
        for op in ops:
            transaction.do(op)
        transaction.write(keep_old=False)
    except OutOfMemory as error:
        transaction.undo()
        return Failed(error)
    except BaseException:
        transaction.undo()
        raise
    return transaction.applied


class _Transaction:
    """Ops on their way, and how to go back.

    A page that an op writes may belong to a sequence of the *old* table: one that was freed to
    make room. So bytes are written last, when everything that is likely to fail has been done. If
    a chunk has to go that a write still needs, the writes so far are done first, and what they
    overwrite is kept.
    """

    def __init__(self, backings: Sequence[Backing], poison: bool) -> None:
        self._backings = backings
        self._poison = poison
        self._undo: list[Callable[[], object]] = []
        self._writes: list[tuple[Backing, Tensor, Tensor | None]] = []
        self._needed: set[tuple[Backing, int]] = set()  # chunks
        self._counts = {Map: 0, Unmap: 0, Copy: 0, Move: 0, Scrub: 0}

    @property
    def applied(self) -> Applied:
        return Applied(self._counts[Map], self._counts[Unmap], self._counts[Copy])

    def do(self, op: Op) -> None:
        backing = self._backings[op.group]
        match op:
            case Map(index):
                backing.map(index)
                self._undo.append(partial(backing.unmap, index))
                if self._poison:
                    self._later(backing, backing.chunk(index), None, range(index, index + 1))
            case Unmap(index):
                if (backing, index) in self._needed:
                    self.write(keep_old=True)
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

    def write(self, *, keep_old: bool) -> None:
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

    def undo(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _later(self, backing: Backing, dst: Tensor, src: Tensor | None, chunks: range) -> None:
        self._writes.append((backing, dst, src))
        self._needs(backing, chunks)

    def _needs(self, backing: Backing, chunks: range) -> None:
        self._needed.update((backing, chunk) for chunk in chunks)
