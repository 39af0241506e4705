"""A file that is read and written in place, past the page cache where the file system can."""

import errno
import fcntl
import mmap
import os
import stat
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvrt.errors import StoreError

BLOCK = 4096
"""Bytes: what O_DIRECT wants offsets, lengths and addresses to be multiples of, at most."""

Bytes = NDArray[np.uint8]


class BlockFile:
    """Reads and writes of bytes at multiples of 4096.

    With `direct`, data goes between disk and caller without a copy in the page cache: that is
    faster (``docs/design/tiers.md``), and the cache's memory stays with those who need it. What
    is not aligned goes through a buffer of the calling thread. A file system without O_DIRECT is
    read and written as usual, and `direct` is false then.

    Raises:
        StoreError: it is a pipe, a device or the like, which nobody waits for.
        OSError: whatever the system says; so do all methods.
    """

    def __init__(self, path: Path, *, writable: bool, direct: bool) -> None:
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        flags |= os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY
        try:
            self._file = os.open(path, flags, 0o600)
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.ENODEV):  # a socket; a device that is not there
                raise _irregular(path) from None
            raise
        self._local = threading.local()
        try:
            if not stat.S_ISREG(self.status.st_mode):
                raise _irregular(path)
            self.direct = direct and self._go_direct()
        except BaseException:
            self.close()
            raise

    def _go_direct(self) -> bool:
        """Try it: some file systems refuse the flag, others only the first read."""
        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags | os.O_DIRECT)
            os.preadv(self._file, [self._bounce(BLOCK)], 0)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags)
            return False
        return True

    @property
    def status(self) -> os.stat_result:
        return os.fstat(self._file)

    @property
    def size(self) -> int:
        return self.status.st_size

    def read(self, into: Bytes, at: int) -> None:
        """Fill `into` from byte `at` on. Past the end of the file is an error, EIO."""
        if self._reachable(into):
            self._read(into.data, at)
        else:
            bounce = self._bounce(len(into))
            self._read(bounce, at)
            into[:] = np.frombuffer(bounce, np.uint8)[: len(into)]

    def write(self, data: Bytes, at: int) -> None:
        """Write all of `data` at byte `at`; what follows up to a multiple of 4096 is undefined."""
        if self._reachable(data):
            self._write(data.data, at)
        else:
            bounce = self._bounce(len(data))
            np.frombuffer(bounce, np.uint8)[: len(data)] = data
            self._write(bounce, at)

    def allocate(self, start: int, end: int) -> None:
        """Make the file `end` bytes long, with disk space for all from `start` on."""
        os.posix_fallocate(self._file, start, end - start)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._file, size)

    def sync(self) -> None:
        """Return when all that was written would survive a loss of power."""
        os.fdatasync(self._file)

    def close(self) -> None:
        """Safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _reachable(self, data: Bytes) -> bool:
        """Whether the disk may access `data` itself."""
        if not self.direct:
            return True
        return data.ctypes.data % BLOCK == 0 and len(data) % BLOCK == 0

    def _bounce(self, nbytes: int) -> memoryview:
        """The calling thread's aligned buffer, `nbytes` rounded up to whole blocks."""
        nbytes = -(-nbytes // BLOCK) * BLOCK
        buffer: Any = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < nbytes:
            buffer = self._local.buffer = mmap.mmap(-1, nbytes)
        return memoryview(buffer)[:nbytes]

    def _read(self, into: memoryview, at: int) -> None:
        done = 0
        while done < len(into):
            got = os.preadv(self._file, [into[done:]], at + done)
            if got == 0:
                raise OSError(errno.EIO, "the file ends too early")
            done += got

    def _write(self, data: memoryview, at: int) -> None:
        done = 0
        while done < len(data):
            done += os.pwritev(self._file, [data[done:]], at + done)


def _irregular(path: Path) -> StoreError:
    return StoreError(
        f"{path} is not a regular file", reason="denied", fix="use another folder, or delete it"
    )
