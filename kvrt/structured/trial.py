"""Constraints are compiled in another process first: one that takes too long is killed with it."""

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from kvrt.errors import KvrtError
from kvrt.structured.constraint import Constraint

SECONDS = 2.0
"""What compiling one may take."""

START_SECONDS = 60.0
"""What a process may take to begin, a large tokenizer included."""

SPARE = 2
"""Processes that are kept for the next constraint."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A constraint is not to be used; why, in words that go on from its name."""

    why: str


class Trials:
    """Processes that try constraints, one constraint at a time each. Any thread may ask.

    Args:
        tokenizer: tokenizer.json's text.
        vocab: token ids there are, with the one for the end.
        end: stands for the end of a text.
    """

    def __init__(self, tokenizer: str, vocab: int, end: int) -> None:
        self._first = {"tokenizer": tokenizer, "vocab": vocab, "end": end}
        self._gate = threading.Lock()
        self._idle: list[_Child] = []
        self._closed = False

    def grammar(self, constraint: Constraint) -> str | Refused:
        """As llguidance reads it, once it was compiled; or that it means nothing, or took too long,
        or too much memory. Raises `KvrtError` if no process could be had."""
        child = self._take()
        try:
            answer = child.ask(asdict(constraint), SECONDS)
        except BaseException:
            child.end()
            raise
        self._give(child)
        if answer is None:
            return Refused("is too large or too complex: compiling it took too much")
        if "wrong" in answer:
            return Refused(f"cannot be used: {answer['wrong']}")
        return answer["grammar"]

    def _take(self) -> "_Child":
        with self._gate:
            while self._idle:
                child = self._idle.pop()
                if child.lives:
                    return child
                child.end()
        child = _Child()
        try:
            if child.ask(self._first, START_SECONDS) is None:
                raise KvrtError("no process to compile constraints could be started")
        except BaseException:
            child.end()
            raise
        return child

    def _give(self, child: "_Child") -> None:
        with self._gate:
            if child.lives and len(self._idle) < SPARE and not self._closed:
                self._idle.append(child)
                return
        child.end()

    def close(self) -> None:
        """End those that wait; others end when they are done."""
        with self._gate:
            self._closed = True
            children, self._idle = self._idle, []
        for child in children:
            child.end()


class _Child:
    """One process."""

    def __init__(self) -> None:
        # It needs nothing of the environment, and may be told nothing by it.
        kept = {
            name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=kept,
            cwd=Path(__file__).parent,
            start_new_session=True,  # Ctrl-C is not for it
        )

    @property
    def lives(self) -> bool:
        """Whether nobody has ended it, here or elsewhere."""
        return self._process.poll() is None

    def ask(self, what: object, seconds: float) -> dict[str, str] | None:
        """Its answer; None: it died, or was killed because none came in time."""
        line = json.dumps(what).encode() + b"\n"
        answer = b""
        with contextlib.suppress(BrokenPipeError, ValueError):
            stdin, stdout = self._process.stdin, self._process.stdout
            assert stdin is not None, "both are pipes"
            assert stdout is not None
            stdin.write(line)
            stdin.flush()
            deadline = time.monotonic() + seconds
            while not answer.endswith(b"\n"):
                left = deadline - time.monotonic()
                ready = left > 0 and select.select([stdout], [], [], left)[0]
                piece = os.read(stdout.fileno(), 1 << 16) if ready else b""
                if not piece:
                    break
                answer += piece
        if not answer.endswith(b"\n"):
            self.end()
            return None
        found: dict[str, str] = json.loads(answer)
        return found

    def end(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from kvrt.structured.child import main; main()"
"""Finds what this process finds."""
