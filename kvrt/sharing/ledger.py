"""The file in which the tenants of a device say what they hold.

    byte 0         locked by whoever changes a number of another, or takes memory
    byte 1 + row   locked by the tenant of that row for as long as it lives
    512 + row      locked by who asks that tenant for something, until it has the answer
    1024 + row     not zero while that tenant waits until its bell is rung
    4096 ...       the rows
    12288 ...      what is asked of the tenant of each, and what it answered
    20480 ...      what each tells of its work, for people

Both are locks of an open file (``F_OFD_SETLK``, Linux): the system drops them when the process is
gone, however it went, so there is nobody to clean up, and no process id that another one gets. A
row that nobody holds is free.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kvrt.errors import ConfigError, StoreError
from kvrt.sharing.fair import Claim
from kvrt.sharing.figures import NBYTES, Figures, unpack
from kvrt.units import format_bytes

ROWS = 64
"""Tenants that a device can have at once."""

NAME_BYTES = 48

_MAGIC = b"kvrtshar"
_VERSION = 2
_HEADER = struct.Struct("<8sqq")  # magic, version, total
_ASKERS, _WAITS = 512, 1024
_FIRST, _STRIDE = 4096, 128
_ROW = struct.Struct(f"<qqqqqqd{NAME_BYTES}s")
_PID = struct.Struct("<q")
_ORDERS = _FIRST + ROWS * _STRIDE
_ASKED = struct.Struct("<qqqq")
_ANSWER = struct.Struct("<qq80s")
_FIGURES = _ORDERS + ROWS * _STRIDE
_BYTES = _FIGURES + ROWS * _STRIDE

_NAP_S = 0.0002


@dataclass(frozen=True, slots=True)
class Row:
    """What one tenant says.

    Args:
        pid: of its process, 0 if there is none.
        name: for people.
        claim: see there.
    """

    pid: int
    name: str
    claim: Claim

    def pack(self) -> bytes:
        claim = self.claim
        return _ROW.pack(
            self.pid, claim.held, claim.want, claim.guarantee, claim.lends, claim.priority,
            claim.weight, self.name.encode()[:NAME_BYTES],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked of a tenant; see `kvrt.sharing.orders`.

    Args:
        number: of the order, from 1.
        verb: what is to be done.
        value: bytes, or a level.
        revision: of the change.
        answered: whether the tenant has done what it could.
        outcome: of that.
        text: why it was refused.
    """

    number: int
    verb: int
    value: int
    revision: int
    answered: bool = False
    outcome: int = 0
    text: str = ""


_NOBODY = Row(0, "", Claim(0, 0))


class Ledger:
    """One process's view of the file. Any thread may use it.

    Args:
        path: of the file. Its folder belongs to the user alone.
        create: it is made if it is missing.

    Raises:
        ConfigError: this system has no locks of open files.
        StoreError: the file cannot be used.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        if not hasattr(fcntl, "F_OFD_SETLK"):
            raise ConfigError("memory is shared among processes on Linux only", fix="leave share")
        self.path = path
        self._guard = threading.Lock()
        self._own: int | None = None
        self._file = self._life = -1
        try:
            self._file = _open(path, create=create)
            self._life = _open(path, create=False)
            if os.fstat(self._file).st_size == 0:
                os.ftruncate(self._file, _BYTES)
            self._checked(os.pread(self._file, _HEADER.size, 0))  # others have other sizes
            self._map = mmap.mmap(self._file, _BYTES)
        except FileNotFoundError:
            raise StoreError(f"nobody shares {path.name}", reason="missing") from None
        except StoreError:
            self.let_go()
            raise
        except (OSError, ValueError) as error:
            self.let_go()
            raise StoreError(
                f"{path}: {error}", reason="failed", fix="remove it when nothing runs that shares"
            ) from None

    def agree(self, total: int | None = None, whole: int | None = None) -> int:
        """The bytes that all tenants together may hold. The lock is held, and kept by who enters.

        Args:
            total: so many; None: what those have that are there.
            whole: the same, if there are none; None: what it had last, for who only looks.

        Raises:
            ConfigError: those that are there have another total.
            StoreError: the file is something else.
        """
        there = self._checked(self._map[: _HEADER.size])
        tenants = self.rows().values()
        if total is None:
            total = there if tenants or whole is None else whole
        if total != there:
            if tenants:
                names = ", ".join(f"{row.name} (process {row.pid})" for row in tenants)
                raise ConfigError(
                    f"{self.path.stem} has {format_bytes(there)} for all, not"
                    f" {format_bytes(total)}; it is in use by {names}",
                    fix=f"say {format_bytes(there)}, or leave the size out",
                )
            _HEADER.pack_into(self._map, 0, _MAGIC, _VERSION, total)
        return int(total)

    def _checked(self, header: bytes) -> int:
        """The total that a header says, if it is of this version, or nobody has written it yet."""
        magic, version, there = _HEADER.unpack(header.ljust(_HEADER.size, b"\0"))
        if (magic, version) in ((_MAGIC, _VERSION), (b"\0" * 8, 0)):
            return int(there)
        ours = f"a ledger of version {version}, not {_VERSION} as of this kvrt"
        raise StoreError(
            f"{self.path} is {ours if magic == _MAGIC else 'something else than a ledger'}",
            reason="foreign",
            fix="have the same release of kvrt in all processes that share, or remove the file when"
            " none runs",
        )

    def close(self) -> None:
        """Leave; a row of its own is free then. Safe to call twice."""
        with self._guard:
            self.let_go()
            self._map.close()

    def let_go(self) -> None:
        """Close the files: all that a forked child may do, in which the lock of threads may be
        another thread's that is not there."""
        for file in (self._life, self._file):
            if file >= 0:
                os.close(file)
        self._life = self._file = -1

    # --- locks -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self, patience: float = 5.0) -> Iterator[None]:
        """Nobody else changes what is not their own meanwhile.

        Args:
            patience: seconds to wait for it.

        Raises:
            TimeoutError: whoever has the lock does not go on (a stopped process, say).
        """
        with self._guard:
            end = time.monotonic() + patience
            while not _lock(self._file, 0):
                if time.monotonic() > end:
                    raise TimeoutError(
                        f"{self.path} has been locked for {patience:g} s: a process that shares"
                        " was stopped"
                    )
                time.sleep(_NAP_S)
            try:
                yield
            finally:
                _unlock(self._file, 0)

    def _alive(self, number: int) -> bool:
        if number == self._own:
            return True
        if not _lock(self._file, 1 + number):
            return True
        _unlock(self._file, 1 + number)
        return False

    # --- rows --------------------------------------------------------------------------------

    def rows(self) -> dict[int, Row]:
        """Of all tenants that live, by number. The lock is held: rows of others are made free."""
        rows = self.peek()
        for number in [number for number in rows if not self._alive(number)]:
            self._write(number, _NOBODY)
            del rows[number]
        return rows

    def peek(self) -> dict[int, Row]:
        """The same without the lock: those that have died may be among them, and a number may be
        about to change."""
        pids = (_PID.unpack_from(self._map, _FIRST + n * _STRIDE)[0] for n in range(ROWS))
        return {number: self._read(number) for number, pid in enumerate(pids) if pid}

    @property
    def content(self) -> bytes:
        """All rows as they are now, to see whether anything has changed."""
        return self._map[_FIRST:_ORDERS]

    def enter(self, row: Row) -> int:
        """Take a free row. The lock is held.

        Raises:
            ConfigError: there is none.
        """
        taken = self.rows()
        free = next((number for number in range(ROWS) if number not in taken), None)
        if free is None:
            raise ConfigError(f"{self.path.stem} has {ROWS} tenants already", fix="stop one")
        if not _lock(self._life, 1 + free):
            raise StoreError(f"{self.path}: row {free} is locked", reason="locked")
        self._own = free
        for first in (_ORDERS, _FIGURES):
            at = first + free * _STRIDE
            self._map[at : at + _STRIDE] = bytes(_STRIDE)
        self._write(free, row)
        return free

    def set(self, held: int, want: int) -> None:
        """What its own row says from now on: to want is anybody's at any time, to hold more needs
        the lock."""
        if self._own is not None:
            row = self._read(self._own)
            self._write(self._own, replace(row, claim=replace(row.claim, held=held, want=want)))

    def set_guarantee(self, number: int, nbytes: int) -> None:
        """What another is due from now on. The lock is held."""
        row = self._read(number)
        self._write(number, replace(row, claim=replace(row.claim, guarantee=nbytes)))

    def order(self, number: int) -> Order | None:
        """The last that was asked of the tenant of a row; None: nothing was."""
        at = _ORDERS + number * _STRIDE
        asked, verb, value, revision = _ASKED.unpack_from(self._map, at)
        answered, outcome, text = _ANSWER.unpack_from(self._map, at + _ASKED.size)
        if not asked:
            return None
        done = answered == asked
        said = text.rstrip(b"\0").decode(errors="replace") if done else ""
        return Order(asked, verb, value, revision, done, outcome, said)

    def figures(self, number: int) -> Figures:
        """What the tenant of a row tells of its work."""
        at = _FIGURES + number * _STRIDE
        return unpack(self._map[at : at + NBYTES])

    def tell(self, number: int, figures: Figures) -> None:
        """Of the tenant of a row."""
        at = _FIGURES + number * _STRIDE
        self._map[at : at + NBYTES] = figures.pack()

    def take_turn(self, number: int) -> bool:
        """Whether nobody else asks the tenant of a row. It is this one's turn until it is closed,
        or is gone."""
        return _lock(self._file, _ASKERS + number)

    def post(self, number: int, verb: int, value: int, revision: int) -> Order:
        """Ask the tenant of a row for something. The lock is held, and it is this one's turn: who
        asked last has its answer, or is gone."""
        last = self.order(number)
        order = Order(1 if last is None else last.number + 1, verb, value, revision)
        _ASKED.pack_into(self._map, _ORDERS + number * _STRIDE, order.number, verb, value, revision)
        return order

    def answer(self, number: int, order: Order, outcome: int, text: str) -> None:
        """Of the tenant of a row."""
        at = _ORDERS + number * _STRIDE + _ASKED.size
        _ANSWER.pack_into(self._map, at, order.number, outcome, text.encode()[:80])

    def waits(self, number: int) -> bool:
        """Whether the tenant of a row waits, so that its bell has to be rung."""
        return self._map[_WAITS + number] != 0

    def set_waits(self, number: int, waits: bool) -> None:
        """It does so from now on, or does no more."""
        self._map[_WAITS + number] = waits

    def _read(self, number: int) -> Row:
        at = _FIRST + number * _STRIDE
        pid, held, want, guarantee, lends, priority, weight, name = _ROW.unpack_from(self._map, at)
        claim = Claim(held, want, guarantee, bool(lends), weight, priority)
        return Row(pid, name.rstrip(b"\0").decode(errors="replace"), claim)

    def _write(self, number: int, row: Row) -> None:
        at = _FIRST + number * _STRIDE
        self._map[at : at + _ROW.size] = row.pack()


def _open(path: Path, *, create: bool) -> int:
    if create:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    return os.open(path, flags, 0o600)


def _lock(file: int, byte: int) -> bool:
    """Whether nobody else had it."""
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK, byte))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _unlock(file: int, byte: int) -> None:
    fcntl.fcntl(file, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, byte))


def _flock(kind: int, byte: int) -> bytes:
    """A ``struct flock`` of one byte, as Linux has it on 64-bit machines."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0)
