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


def apply(ops: Sequence[Op], backing: Backing, *, poison: bool = False) -> Applied | Failed:
    """Carry out `ops` in order. If one fails, undo those before it, the last first.

    Args:
        poison: scrub each chunk that is mapped, too.

    Raises:
        DeviceError: a call failed for another reason than memory. What was done is undone, but if
            it was a copy that failed, pages that these ops take from one sequence to give to
            another may be overwritten.
    """
    transaction = _Transaction(backing, poison)
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

    def __init__(self, backing: Backing, poison: bool) -> None:
        self._backing = backing
        self._poison = poison
        self._undo: list[Callable[[], object]] = []
        self._writes: list[tuple[Tensor, Tensor | None]] = []
        self._needed: set[int] = set()
        self._counts = {Map: 0, Unmap: 0, Copy: 0, Move: 0, Scrub: 0}

    @property
    def applied(self) -> Applied:
        return Applied(self._counts[Map], self._counts[Unmap], self._counts[Copy])

    def do(self, op: Op) -> None:
        backing = self._backing
        match op:
            case Map(index):
                backing.map(index)
                self._undo.append(partial(backing.unmap, index))
                if self._poison:
                    self._later(backing.chunk(index), None, range(index, index + 1))
            case Unmap(index):
                if index in self._needed:
                    self.write(keep_old=True)
                backing.unmap(index)
                self._undo.append(partial(backing.map, index))
            case Copy(src, dst):
                self._needed.update(backing.geometry.chunks_of(src))
                self._later(backing.page(dst), backing.page(src), backing.geometry.chunks_of(dst))
            case Move(src, src_slot, dst, dst_slot):
                self._needed.update(backing.geometry.chunks_of(src))
                pieces = zip(
                    backing.token(dst, dst_slot), backing.token(src, src_slot), strict=True
                )
                for to, source in pieces:
                    self._later(to, source, backing.geometry.chunks_of(dst))
            case Scrub(page):
                self._later(backing.page(page), None, backing.geometry.chunks_of(page))
        self._counts[type(op)] += 1

    def write(self, *, keep_old: bool) -> None:
        """Do the writes that were put off."""
        for dst, src in self._writes:
            if keep_old:
                self._undo.append(partial(self._backing.copy, dst, dst.clone()))
            if src is None:
                self._backing.scrub(dst)
            else:
                self._backing.copy(dst, src)
        self._writes.clear()
        self._needed.clear()

    def undo(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _later(self, dst: Tensor, src: Tensor | None, chunks: range) -> None:
        self._writes.append((dst, src))
        self._needed.update(chunks)
