"""The audit log: who asked what route when, how it ended, and how many tokens it took. Never what
was said.

    {"at": "2026-11-27T12:00:00+00:00", "id": "req-5f", "key": "alice",
     "workspace": "acme", "route": "/v1/completions", "status": 200, "seconds": 0.41,
     "prompt_tokens": 12, "generated_tokens": 40}

A disk that is slow or full keeps nobody waiting: a thread writes, lines that find no room are
counted, and answers go on.

A log that has a largest size, or days, begins anew: what was there is FILE.20261127T120000000000Z
then, and is deleted when it is older than its days.
"""

import glob
import logging
import os
import queue
import re
import stat
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from kvrt.errors import ConfigError
from kvrt.server.entry import Entry

log = logging.getLogger(__name__)

FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
"""Not even a pipe that nobody reads keeps a start waiting."""

WAITING = 10_000
"""Lines, at most, that wait for the disk."""

AT_ONCE = 256
WARN_S = 60.0
CLOSE_S = 5.0
DAY_S = 86_400
STAMP = "%Y%m%dT%H%M%S%fZ"
STAMPED = re.compile(r"[0-9]{8}T[0-9]{12}Z", re.ASCII)


class Audit:
    """Appends to a file, which is made for its owner alone.

    Args:
        path: the file.
        size: bytes after which it begins anew; None: never for that.
        days: it begins anew after a day, and what is so many days old is deleted; None: neither.

    Raises:
        ConfigError: it cannot be written.
    """

    def __init__(self, path: Path, size: int | None = None, days: int | None = None) -> None:
        self._path = path
        self._most = size
        self._days = days
        try:
            self._open()
        except OSError as error:
            raise ConfigError(
                f"{path}: the audit log cannot be written: {error.strerror}"
            ) from None
        self._lines: queue.Queue[bytes | None] = queue.Queue(WAITING)
        self._warned = -WARN_S
        self.lost = 0
        """Lines that could not be written."""
        self._writer = threading.Thread(target=self._write, name="kvrt-audit", daemon=True)
        self._writer.start()

    def add(self, entry: Entry) -> None:
        """A request has ended. Does not wait."""
        try:
            self._lines.put_nowait(msgspec.json.encode(_told(entry)) + b"\n")
        except queue.Full:
            self._lose(1, "the disk is too slow")

    def close(self) -> None:
        """Once what is there was written, or could not be in time."""
        try:
            self._lines.put(None, timeout=CLOSE_S)
            self._writer.join(CLOSE_S)
        except queue.Full:
            log.warning("%s: the last lines of the audit log were not written", self._path)

    def _write(self) -> None:
        ended = False
        while not ended:
            lines = [self._lines.get()]
            while len(lines) < AT_ONCE and not self._lines.empty():
                lines.append(self._lines.get())
            ended = lines[-1] is None
            self._append([line for line in lines if line is not None])
        os.close(self._file)

    def _open(self) -> None:
        self._file = os.open(self._path, FLAGS, 0o600)
        told = os.fstat(self._file)
        self._size = told.st_size
        self._plain = stat.S_ISREG(told.st_mode)
        self._begun = time.time()
        if self._size:  # by a server before this one
            self._begun = _begun(self._path, told.st_mtime)

    def _begin_anew(self, coming: int) -> None:
        """Where it is time for it."""
        if not self._plain or not self._size:
            return
        full = self._most is not None and self._size + coming > self._most
        old = self._days is not None and time.time() - self._begun >= DAY_S
        if not full and not old:
            return
        before = self._path.with_name(f"{self._path.name}.{datetime.now(UTC).strftime(STAMP)}")
        try:
            self._path.rename(before)
            last = self._file
            self._open()
            os.close(last)
            self._forget()
        except OSError as error:  # it goes on as it is
            self._warn(f"it cannot begin anew: {error.strerror}")

    def _forget(self) -> None:
        """What is too old goes."""
        if self._days is None:
            return
        oldest = (datetime.now(UTC) - timedelta(days=self._days)).strftime(STAMP)
        for path in self._path.parent.glob(f"{glob.escape(self._path.name)}.*"):
            stamp = path.name.removeprefix(f"{self._path.name}.")
            if STAMPED.fullmatch(stamp) and stamp < oldest:
                path.unlink(missing_ok=True)

    def _append(self, lines: list[bytes]) -> None:
        data = b"".join(lines)
        self._begin_anew(len(data))
        try:
            while data:
                written = os.write(self._file, data)
                self._size += written
                data = data[written:]
        except OSError as error:
            self._lose(data.count(b"\n"), error.strerror or "it failed")

    def _lose(self, count: int, why: str) -> None:
        self.lost += count
        self._warn(f"lines of the audit log are lost: {why}")

    def _warn(self, what: str) -> None:
        if time.monotonic() - self._warned >= WARN_S:
            self._warned = time.monotonic()
            log.warning("%s: %s", self._path, what)


def _begun(path: Path, default: float) -> float:
    """When the first line of a log was written, as it says."""
    try:
        with path.open("rb") as file:
            first = msgspec.json.decode(file.readline(4096))
        return datetime.fromisoformat(first["at"]).timestamp()
    except (OSError, ValueError, KeyError, TypeError, msgspec.DecodeError):
        return default


def _told(entry: Entry) -> dict[str, Any]:
    found = {
        "at": datetime.fromtimestamp(entry.at, UTC).isoformat(),
        "id": entry.id,
        "key": entry.owner.name or None if entry.owner else None,
        "workspace": entry.owner.tenant or None if entry.owner else None,
        "route": entry.route,
        "status": int(entry.status),
        "seconds": round(entry.seconds, 6),
    }
    if (progress := entry.progress) is None:
        return found
    return {
        **found,
        "prompt_tokens": progress.prompt_tokens,
        "generated_tokens": progress.generated_tokens,
    }
