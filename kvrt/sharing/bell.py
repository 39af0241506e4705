"""How a tenant that waits is woken by another one: a FIFO beside the ledger, for each row.

    .bells/NAME.cpu0.3      rung for row 3 of the ledger NAME.cpu0

The system keeps what was written until it is read, so a bell that is rung before its owner waits is
heard. One whose owner is gone has no reader, and to ring it does nothing; the next owner of the row
takes it over. Nobody ever waits in ringing.
"""

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

from kvrt.errors import StoreError

_AT_ONCE = 4096


class Bell:
    """A tenant's own.

    Args:
        path: of its ledger.
        row: of the tenant there.

    Raises:
        StoreError: no FIFO can be made there.
    """

    def __init__(self, path: Path, row: int) -> None:
        self._path = _path(path, row)
        self._thread: threading.Thread | None = None
        self._closed = False
        try:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkfifo(self._path, 0o600)
            # To write as well, so that reading never comes to an end when another one has rung.
            self._file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            if not stat.S_ISFIFO(os.fstat(self._file).st_mode):
                os.close(self._file)
                raise FileExistsError(errno.EEXIST, "it is no FIFO")
        except OSError as error:
            raise StoreError(
                f"{self._path}: {error.strerror}",
                reason="denied",
                fix="set KVRT_SHARE_DIR to a folder of your own, on a file system that has FIFOs",
            ) from None

    def listen(self, heard: Callable[[], None]) -> None:
        """Call `heard`, on a thread of its own, whenever it was rung."""
        self._thread = threading.Thread(
            target=self._listen, args=(heard,), name="kvrt-bell", daemon=True
        )
        self._thread.start()

    def _listen(self, heard: Callable[[], None]) -> None:
        while os.read(self._file, _AT_ONCE) and not self._closed:
            heard()

    def close(self) -> None:
        """Listen no more. Safe to call twice."""
        if self._file < 0:
            return
        self._closed = True
        if self._thread is not None and self._thread is not threading.current_thread():
            os.write(self._file, b"!")
            self._thread.join()
        self.let_go()

    def let_go(self) -> None:
        """Close the file: all that a forked child may do, which has no thread that listens."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


def ring(path: Path, row: int) -> None:
    """Wake the tenant of a row, if it lives and listens."""
    with contextlib.suppress(OSError):  # nobody reads it; or it was rung so often that it is full
        file = os.open(_path(path, row), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.write(file, b"!")
        finally:
            os.close(file)


def bells_of(ledger: Path) -> list[Path]:
    """Those that tenants of a ledger have, or have left."""
    return list((ledger.parent / ".bells").glob(f"{ledger.name}.*"))


def _path(ledger: Path, row: int) -> Path:
    return ledger.parent / ".bells" / f"{ledger.name}.{row}"
