"""Processes of this run: none outlives it, whatever ends it.

Each is the first of a session of its own, so Ctrl-C reaches only the parent, which then ends the
child with all that the child started. A worker whose parent was killed reads the end of its input.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[3]


@contextmanager
def started(
    command: Sequence[str | Path], log: IO[str], environ: Mapping[str, str], **pipes: Any
) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with the block, by force if need be."""
    process = subprocess.Popen(
        [str(word) for word in command], cwd=ROOT, env=os.environ | dict(environ), text=True,
        stderr=log, start_new_session=True, **pipes,
    )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def end_as_by_ctrl_c() -> None:
    """What asks this process to end raises, too, so that what it started is ended."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def call(command: Sequence[str | Path], log: Path, environ: Mapping[str, str] = {}) -> None:
    """Run a command to its end; what it says is added to a log.

    Raises:
        CalledProcessError: it failed.
    """
    with log.open("a") as words:
        print("$", *command, file=words, flush=True)
        with started(command, words, environ, stdin=subprocess.DEVNULL, stdout=words) as process:
            status = process.wait()
    if status:
        raise subprocess.CalledProcessError(status, [str(word) for word in command])


class Refused(Exception):
    """What a worker says instead of an answer."""


class Worker:
    """An engine in a process of its own: a line of JSON for each question, one for its answer."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, question: str, **about: Any) -> Any:
        """
        Raises:
            Refused: the engine failed, with its words, or its process ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            print(json.dumps({"question": question, **about}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise Refused(f"its process ended with status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Refused(answer["error"])
        return answer


@contextmanager
def worker(python: Path, peer: str, threads: int, log: IO[str]) -> Iterator[Worker]:
    """Every engine gets the same number of threads, and nothing from the network."""
    environ = {
        "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    command: list[str | Path] = [python, "-m", "tests.bench.peers.worker", peer, str(threads)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started(command, log, environ, **pipes) as process:
        yield Worker(process)


def print_error(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)
