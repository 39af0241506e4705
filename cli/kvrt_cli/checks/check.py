"""What a check found, and how a check that fails or hangs is contained."""

import enum
import queue
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


class Mark(enum.Enum):
    """How it stands: good, worth mending, broken, or not applicable here."""

    OK = "ok"
    WARN = "!"
    BAD = "x"
    SKIP = "-"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's report.

    Args:
        group: where it is listed.
        name: of the check, for programs.
        mark: how it stands.
        text: what was found, in one line.
        fix: the command or sentence that mends it; empty if nothing needs mending.
        details: more lines, for ``-v``.
        data: what was measured, for ``--json``.
    """

    group: str
    name: str
    mark: Mark
    text: str
    fix: str = ""
    details: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


Checks = Callable[[], Iterator[Check]]


def contained(group: str, checks: Checks, *, seconds: float) -> Iterator[Check]:
    """The checks of a group, as they come.

    One that raises becomes a broken check with its traceback. One that does not return is given up
    after `seconds` without a check, in a thread that does not keep the process from ending: a
    driver that hangs is when people ask the doctor.
    """
    found: queue.SimpleQueue[Check | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            for check in checks():
                found.put(check)
        except (Exception, SystemExit) as error:
            found.put(failed(group, "check", error))
        finally:
            found.put(None)

    threading.Thread(target=work, name=f"kvrt-doctor-{group}", daemon=True).start()
    while True:
        try:
            check = found.get(timeout=seconds)
        except queue.Empty:
            text = f"no answer within {seconds:g} s: it hangs"
            fix = "if this machine is only slow, emulated for one, give it longer with --timeout"
            yield Check(group, "check", Mark.BAD, text, fix)
            return
        if check is None:
            return
        yield check


def failed(group: str, name: str, error: BaseException) -> Check:
    """The check that an exception stands for."""
    text = f"{name}: {type(error).__name__}: {' '.join(str(error).split())}"
    details = "".join(traceback.format_exception(error))
    return Check(group, name, Mark.BAD, text, getattr(error, "fix", ""), details)
