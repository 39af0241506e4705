"""Standard streams that are closed, cannot be written, or cannot print every character."""

import subprocess
from collections.abc import Sequence
from itertools import combinations

import pytest

from .conftest import COMMAND, ENVIRON

CLOSING = {0: "<&-", 1: ">&-", 2: "2>&-"}
SETS = [closed for count in (1, 2, 3) for closed in combinations(CLOSING, count)]
RUN = ("run", "tiny", "def f():", "-n", "4", "--temp", "0")
COMMANDS = [("--version",), ("bench", "--help"), ("doctor", "--only", "python"), RUN]
QUICK = {*((("--version",), closed) for closed in SETS), (RUN, (2,)), (RUN, (0, 1, 2))}
"""What the default suite tries; each is a process of its own."""

CASES = [
    pytest.param(
        command,
        closed,
        id=f"{command[0]} {' '.join(CLOSING[number] for number in closed)}",
        marks=() if (command, closed) in QUICK else pytest.mark.extra,
    )
    for command in COMMANDS
    for closed in SETS
]


def shell(redirections: str, *args: str, **options: object) -> "subprocess.CompletedProcess[bytes]":
    """Run `kvrt` with the redirections of a shell."""
    line = ["sh", "-c", f'"$@" {redirections}', "sh", *COMMAND, *args]
    pipes = {"stdin": subprocess.DEVNULL, "capture_output": True, "env": ENVIRON, "timeout": 120}
    return subprocess.run(line, **{**pipes, **options})  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(("command", "closed"), CASES)
def test_whatever_streams_are_closed_it_answers_or_says_why_not(
    command: Sequence[str], closed: Sequence[int]
) -> None:
    done = shell(" ".join(CLOSING[number] for number in closed), *command)
    assert b"Traceback" not in done.stderr
    if 1 in closed:
        assert done.returncode == 2
        cause = b"error: standard output is closed\n  fix: discard it with >/dev/null\n"
        assert done.stderr == (b"" if 2 in closed else cause)
    else:
        assert done.returncode == 0, done.stderr
        assert len(done.stdout) > 10


@pytest.mark.parametrize("args", [("run", "tiny", "-"), ("run", "tiny", "--prompts", "-")])
def test_an_input_that_is_asked_for_and_closed_is_an_error(args: Sequence[str]) -> None:
    done = shell("<&-", *args)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: standard input is closed\n")


def test_a_standard_error_that_cannot_be_written_costs_no_answer() -> None:
    done = shell("2>/dev/full", *RUN)
    assert done.returncode == 0
    assert len(done.stdout) > 10
