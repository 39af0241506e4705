"""Control groups, in which a test may limit the memory of processes."""

import contextlib
import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

ROOTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory"))
"""Of version 2, and of version 1."""


class Group:
    """A control group of either version.

    Args:
        path: its folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._second = (path / "cgroup.controllers").exists()

    def enter(self) -> None:
        """This process is in it from now on."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def used(self) -> int:
        """Bytes."""
        name = "memory.current" if self._second else "memory.usage_in_bytes"
        return int((self.path / name).read_text())

    def limit(self, nbytes: int) -> None:
        """Of its processes together; there is no swap beyond it."""
        if self._second:
            (self.path / "memory.swap.max").write_text("0")
        name = "memory.max" if self._second else "memory.limit_in_bytes"
        (self.path / name).write_text(str(nbytes))

    @property
    def killed(self) -> int:
        """Processes that were killed since they took more."""
        name = "memory.events" if self._second else "memory.oom_control"
        words = (line.split() for line in (self.path / name).read_text().splitlines())
        return next((int(number) for key, number in words if key == "oom_kill"), 0)


@contextlib.contextmanager
def own_group() -> Iterator[Group | None]:
    """A group for a test; None: none can be made here."""
    for root in ROOTS:
        path = root / f"kvrt-test-{uuid.uuid4().hex[:8]}"
        try:
            path.mkdir()
        except OSError:
            continue
        try:
            group = Group(path)
            group.used()
            yield group
            return
        except FileNotFoundError:  # it has no memory to give
            continue
        finally:
            _remove(path)
    yield None


def _remove(path: Path, seconds: float = 10.0) -> None:
    """A group is gone once its processes are, which a killed one may have left behind."""
    procs, end = path / "cgroup.procs", time.monotonic() + seconds
    while True:
        for pid in procs.read_text().split() if procs.exists() else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        try:
            return path.rmdir()
        except OSError:
            if time.monotonic() > end:
                raise
        time.sleep(0.02)
