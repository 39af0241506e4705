"""The process that tries constraints before they are let near requests.

It reads lines of JSON: first what a tokenizer is, then one constraint after the other, and answers
each with a line. It ends when nobody holds its standard input any more; and by itself when an
answer takes too long, so that none goes on for an asker that was killed.
"""

import json
import os
import resource
import signal
import sys
from pathlib import Path

import llguidance

from kvrt.structured.constraint import Constraint
from kvrt.structured.grammar import NotCompiled, compiled, written
from kvrt.structured.trial import SECONDS, START_SECONDS

MEMORY = 1 << 30
"""Bytes, beside what the process has when it begins."""

PAGE = os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Until there are no more lines."""
    _end_after(START_SECONDS)
    lines = sys.stdin.buffer
    first = json.loads(lines.readline())
    tokenizer = llguidance.LLTokenizer(
        first["tokenizer"], n_vocab=first["vocab"], eos_token=first["end"]
    )
    size = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _say({})
    _end_after(0)  # not at all, while it waits
    for line in lines:
        _end_after(SECONDS)
        _say(_tried(Constraint(**json.loads(line)), tokenizer))
        _end_after(0)


def _end_after(seconds: float) -> None:
    """By a signal that the system itself acts on, whatever the process is doing then."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _tried(constraint: Constraint, tokenizer: llguidance.LLTokenizer) -> dict[str, str]:
    try:
        grammar = written(constraint)
        compiled(grammar, tokenizer)
    except NotCompiled as error:
        return {"wrong": str(error)}
    return {"grammar": grammar}


def _say(answer: dict[str, str]) -> None:
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
