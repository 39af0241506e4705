"""The folder that a page file lives in: who may use it, and that only one does."""

import fcntl
import os
import stat
from pathlib import Path

from kvrt.errors import StoreError

LOCK = "kvrt-pages.lock"
_ELSEWHERE = "use another folder"


def own_folder(folder: str | Path, fingerprint: bytes) -> Path:
    """Where in a folder that several models may share the pages of this one are."""
    return Path(folder).expanduser() / fingerprint.hex()[:16]


def prepare(folder: Path, *, create: bool) -> None:
    """See that `folder` is a folder of ours; make it, for its owner alone, if it may be made.

    What users wrote can be computed back from keys and values. So no one else may read what is
    made here, and no one else's folder is written to, as its owner could.

    Raises:
        StoreError: it is none, belongs to somebody else, can be written to by somebody else, or
            cannot be read or made.
    """
    try:
        if create:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except FileExistsError:
        raise StoreError(f"{folder} is not a folder", reason="denied", fix=_ELSEWHERE) from None
    except FileNotFoundError as error:
        if create:  # in a place such as /proc, where nothing can be made
            raise StoreError(
                f"{folder} cannot be made: {error.strerror}", reason="failed", fix=_ELSEWHERE
            ) from None
        raise StoreError(
            f"{folder} is not there", reason="missing", fix="save some pages there first"
        ) from None
    except OSError as error:
        raise refused(folder, error) from None
    except ValueError:  # a name that cannot be one
        raise StoreError(
            f"{str(folder)!r} is not a path", reason="failed", fix=_ELSEWHERE
        ) from None
    if not stat.S_ISDIR(found.st_mode):
        raise StoreError(f"{folder} is not a folder", reason="denied", fix=_ELSEWHERE)
    if create and found.st_uid != os.geteuid():
        raise StoreError(
            f"{folder} belongs to user {found.st_uid}, and this is user {os.geteuid()}: its owner"
            " could read what users of kvrt wrote",
            reason="denied",
            fix=f"use a folder of your own, or: chown -R {os.geteuid()} {folder}",
        )
    check_owner(folder, found)


def check_owner(path: Path, found: os.stat_result) -> None:
    """See that nobody else may have made the pages that are found here.

    Checksums find damage, not malice: whoever can write a page decides what is answered to those
    who use it. The administrator can do so anyway, and may hand out pages to be read.

    Args:
        path: of the folder, or a file in it.
        found: what the system says of it.

    Raises:
        StoreError: it belongs to somebody else, or its mode lets others write to it.
    """
    us = os.geteuid()
    if found.st_uid not in (us, 0):
        raise StoreError(
            f"{path} belongs to user {found.st_uid}, and this is user {us}: its pages could say"
            " anything",
            reason="denied",
            fix=f"use a folder of your own, or, if you trust it: chown -R {us} {path}",
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StoreError(
            f"{path} can be written to by other users: its pages could say anything",
            reason="denied",
            fix=f"if you trust what is there: chmod -R go-w {path}",
        )


def refused(path: Path, error: OSError) -> StoreError:
    """What the system said of a path, as an error of ours."""
    if isinstance(error, PermissionError):
        return StoreError(
            f"{path}: {error.strerror}", reason="denied", fix=f"chmod u+rwX {path}, or {_ELSEWHERE}"
        )
    return StoreError(f"{path}: {error.strerror}", reason="failed", fix=_ELSEWHERE)


class FolderLock:
    """The right to write to a folder, until it is released or the process ends, however it ends.

    Raises:
        StoreError: another process has it; the error names it.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise refused(path, error) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            holder = os.pread(self._file, 32, 0).decode(errors="replace").strip()
            self.release()
            raise StoreError(
                f"{folder} is in use by process {holder or 'unknown'}",
                reason="locked",
                fix=f"end that process, or {_ELSEWHERE}",
            ) from None
        except OSError as error:
            self.release()
            raise refused(path, error) from None

    def release(self) -> None:
        """Safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def create(index: Path, data: Path, head: bytes) -> None:
    """Make an index of nothing but its superblock, if there is none. It appears whole or not.

    Raises:
        StoreError: there is data that has lost its index.
        OSError: whatever the system says.
    """
    if index.exists():
        return
    if data.exists():
        raise StoreError(
            f"{data} is there without its index",
            reason="damaged",
            fix=f"{_ELSEWHERE}, or delete this one if nothing in it is needed",
        )
    new = index.with_suffix(".new")
    file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(file, head)
        os.fsync(file)
    finally:
        os.close(file)
    new.rename(index)
