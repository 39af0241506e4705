"""Who may still use which memory: what a device has been given to do, and nobody saw end."""

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kvrt.errors import ContractError
from kvrt.spi import AttentionBatch


@dataclass(frozen=True, slots=True, eq=False)
class Access:
    """Memory that is used: `nbytes` at each of the addresses `starts`.

    Args:
        writes: whether it is written, too. Two that only read do not disturb each other.
    """

    starts: NDArray[np.int64]
    nbytes: int
    writes: bool

    @classmethod
    def of(cls, tensor: Tensor, *, writes: bool) -> "Access":
        return cls(np.array([tensor.data_ptr()]), tensor.nbytes, writes)

    def meets(self, start: int, nbytes: int) -> bool:
        """Whether it shares a byte with ``[start, start + nbytes)``."""
        apart = (self.starts >= start + nbytes) | (self.starts + self.nbytes <= start)
        return not apart.all()

    def disturbs(self, other: "Access") -> bool:
        """Whether the order of the two matters; `other` is in one piece."""
        return (self.writes or other.writes) and self.meets(int(other.starts[0]), other.nbytes)


def pages_used(batch: AttentionBatch) -> tuple[Access, Access]:
    """The pages that attention over `batch` reads, and those it appends to."""
    layout, size = batch.layout, batch.layout.page_size
    table, context = batch.page_table.numpy(), batch.context_len.numpy()
    query = np.diff(batch.query_start.numpy())
    column = np.arange(table.shape[1])
    end = np.where(query > 0, -(-context // size), 0)[:, None]
    read = column < end
    written = read & (column >= ((context - query) // size)[:, None])
    nbytes = layout.page_stride * batch.kv.itemsize

    def access(chosen: NDArray[np.bool_], *, writes: bool) -> Access:
        pages = np.unique(table[chosen]).astype(np.int64)
        return Access(batch.kv.data_ptr() + pages * nbytes, nbytes, writes)

    return access(read, writes=False), access(written, writes=True)


class Hazards:
    """Keeps account of compute and copies under way, and refuses what would meet them.

    Whatever was submitted may still run until one who asked has been told that it is done: its own
    ticket, a later fence, or `all_done`. That it happened to be quick is no excuse. Compute runs
    in the order in which it was submitted, so that it never disturbs other compute.
    """

    def __init__(self) -> None:
        self._submitted = 0
        self._compute: dict[Access, int] = {}  # with the number of the last call that uses it
        self._copies: dict[int, tuple[Access, Access]] = {}
        self._lock = threading.Lock()

    def now(self) -> int:
        """What a wait for everything at this moment covers; see `compute_done`."""
        return self._submitted

    def compute(self, access: Access) -> None:
        """Compute is submitted.

        Raises:
            ContractError: it meets a copy.
        """
        with self._lock:
            for place in (place for copy in self._copies.values() for place in copy):
                if access.disturbs(place):
                    raise _refused("compute is submitted that uses", place, _BY_COPY)
            self._submitted += 1
            self._compute[access] = self._submitted

    def check_copy(self, dst: Tensor, src: Tensor, behind: int) -> None:
        """A copy may begin as soon as compute up to `behind` is done.

        Raises:
            ContractError: it meets compute after that.
        """
        with self._lock:
            for access in (access for access, last in self._compute.items() if last > behind):
                for place in _places(dst, src):
                    if access.disturbs(place):
                        raise _refused("a copy may begin that uses", place, _BY_COMPUTE)

    def copy(self, dst: Tensor, src: Tensor) -> int:
        """A copy is submitted; returns its number for `copy_done`."""
        with self._lock:
            self._submitted += 1
            self._copies[self._submitted] = _places(dst, src)
            return self._submitted

    def unmap(self, start: int, nbytes: int) -> None:
        """Memory goes away.

        Raises:
            ContractError: it may still be used.
        """
        gone = Access(np.array([start]), nbytes, writes=True)
        with self._lock:
            if any(access.disturbs(gone) for access in self._compute):
                raise _refused("an unmap takes away", gone, _BY_COMPUTE)
            if any(place.disturbs(gone) for copy in self._copies.values() for place in copy):
                raise _refused("an unmap takes away", gone, _BY_COPY)

    def compute_done(self, upto: int) -> None:
        """Somebody was told so: all compute submitted up to then is done."""
        with self._lock:
            self._compute = {a: last for a, last in self._compute.items() if last > upto}

    def copy_done(self, number: int) -> None:
        """Somebody was told so."""
        with self._lock:
            self._copies.pop(number, None)

    def all_done(self, upto: int) -> None:
        """Somebody was told so: compute and copies submitted up to then are done."""
        self.compute_done(upto)
        with self._lock:
            self._copies = {n: places for n, places in self._copies.items() if n > upto}


_BY_COMPUTE = ("compute uses them", "wait for a fence behind the compute first")
_BY_COPY = ("a copy uses them", "wait for the copy's ticket first")


def _places(dst: Tensor, src: Tensor) -> tuple[Access, Access]:
    return Access.of(dst, writes=True), Access.of(src, writes=False)


def _refused(what: str, place: Access, why: tuple[str, str]) -> ContractError:
    user, fix = why
    where = f"{place.nbytes} bytes at {int(place.starts[0]):#x}"
    return ContractError(f"{what} {where}, while {user}", fix=fix)
