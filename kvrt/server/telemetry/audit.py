"""The audit log: who asked what route when, how it ended, and how many tokens it took. Never what
was said.

    {"at": "2026-11-27T12:00:00+00:00", "id": "req-5f", "key": "alice",
     "route": "/v1/completions", "status": 200, "seconds": 0.41,
     "prompt_tokens": 12, "generated_tokens": 40}

A disk that is slow or full keeps nobody waiting: a thread writes, lines that find no room are
counted, and answers go on.
"""

import logging
import os
import queue
import threading
import time
from datetime import UTC, datetime
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


class Audit:
    """Appends to a file, which is made for its owner alone.

    Args:
        path: the file.

    Raises:
        ConfigError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = os.open(path, FLAGS, 0o600)
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

    def _append(self, lines: list[bytes]) -> None:
        data = b"".join(lines)
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            self._lose(data.count(b"\n"), error.strerror or "it failed")

    def _lose(self, count: int, why: str) -> None:
        self.lost += count
        if time.monotonic() - self._warned >= WARN_S:
            self._warned = time.monotonic()
            log.warning("%s: lines of the audit log are lost: %s", self._path, why)


def _told(entry: Entry) -> dict[str, Any]:
    found = {
        "at": datetime.fromtimestamp(entry.at, UTC).isoformat(),
        "id": entry.id,
        "key": entry.owner.name or None if entry.owner else None,
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
