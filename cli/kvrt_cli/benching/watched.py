"""``kvrt`` that tells, by a pipe, when each part of its start has ended (`kvrt.bench.startup`).

Nothing of the server knows of it: functions of its start are wrapped before it begins.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

PROGRAM = """
import time
at = time.time()
from kvrt_cli.benching.watched import main
main(at)
"""
"""Is given the pipe's number, and then what `kvrt` is given."""

MODULES = (
    "kvrt_cli.main",
    "kvrt_cli.serve",
    "torch",
    "kvrt.engine.assembly",
    "kvrt.model.weights.resident",
    "kvrt.runtime",
    "kvrt.server.serve",
)


class Marks:
    """Tells each mark once.

    Args:
        pipe: its number.
    """

    def __init__(self, pipe: int) -> None:
        self._told: set[str] = set()
        self._file = os.fdopen(pipe, "w")

    def add(self, name: str, at: float | None = None) -> None:
        if name not in self._told:
            self._told.add(name)
            line = json.dumps([name, time.time() if at is None else at])
            print(line, file=self._file, flush=True)

    def around(
        self, owner: object, name: str, *, before: str | None = None, after: str | None = None
    ) -> None:
        """Wrap a function: one mark before it, one behind it."""
        function: Callable[..., Any] = getattr(owner, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            if before is not None:
                self.add(before)
            found = function(*args, **options)
            if after is not None:
                self.add(after)
            return found

        setattr(owner, name, wrapped)


def main(at: float) -> None:
    """Never returns: as `kvrt`.

    Args:
        at: when Python had begun.
    """
    marks = Marks(int(sys.argv.pop(1)))
    marks.add("interpreter", at)
    found = {name: importlib.import_module(name) for name in MODULES}
    marks.add("modules")
    marks.around(found["kvrt.engine.assembly"], "open_device", after="device")
    resident = found["kvrt.model.weights.resident"].Resident
    marks.around(resident, "read", before="files", after="weights")
    marks.around(found["kvrt.runtime"].Runtime, "__init__", after="memory")
    found["kvrt_cli.main"].main()
