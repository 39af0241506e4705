"""Standard streams that are closed, cannot be written, or cannot print every character."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import pytest
from kvrt_cli.jsontext import to_json

from .conftest import COMMAND, DUMMY, ENVIRON

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


def test_no_file_takes_the_place_of_a_closed_stream() -> None:
    code = (
        "import os; from kvrt_cli.streams import fill_closed; fill_closed();"
        "print(*(os.readlink(f'/proc/self/fd/{number}') for number in (0, 2)))"
    )
    line = ["sh", "-c", '"$0" -c "$1" <&- 2>&-', sys.executable, code]
    done = subprocess.run(line, stdout=subprocess.PIPE, check=True, timeout=60)
    assert done.stdout.split() == [b"/dev/null", b"/dev/null"]


def test_json_has_no_number_that_is_none() -> None:
    value = {"a": [float("nan"), (float("inf"), 1.5)], "b": {"c": -float("inf")}, "d": None}
    assert to_json(value) == '{"a": [null, [null, 1.5]], "b": {"c": null}, "d": null}'
    assert to_json("é") == '"\\u00e9"'
    assert to_json("é", ascii_only=False) == '"é"'


@pytest.mark.parametrize("args", [("run", "tiny", "-"), ("run", "tiny", "--prompts", "-")])
def test_an_input_that_is_asked_for_and_closed_is_an_error(args: Sequence[str]) -> None:
    done = shell("<&-", *args)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: standard input is closed\n")


def test_a_standard_error_that_cannot_be_written_costs_no_answer() -> None:
    done = shell("2>/dev/full", *RUN)
    assert done.returncode == 0
    assert len(done.stdout) > 10


LOCALES = {
    "C": {"LC_ALL": "C"},
    "ASCII": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "POSIX": {"LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii"},
}


@pytest.mark.parametrize(
    "name", ["ASCII", *(pytest.param(name, marks=pytest.mark.extra) for name in ("C", "POSIX"))]
)
def test_arguments_are_utf_8_whatever_the_locale(plain_model: str, name: str) -> None:
    """The model knows single bytes: as many tokens as there are in UTF-8."""
    folder = Path(plain_model).with_name("modèle")
    if not folder.exists():
        folder.symlink_to(plain_model)
    args = ("run", str(folder), *DUMMY, "-n", "3", "--json")
    asked = "caf\xe9 \U0001f336".encode()
    plain = run(*args, asked, "--stop", "…")
    done = run(*args, asked, "--stop", "…", env={**ENVIRON, **LOCALES[name]})
    assert (done.returncode, plain.returncode) == (0, 0), done.stderr
    answers = [json.loads(output) for output in (plain.stdout, done.stdout)]
    assert answers[0]["usage"]["prompt_tokens"] == len(asked)
    for key in ("text", "token_ids", "usage"):
        assert answers[0][key] == answers[1][key]


@pytest.mark.parametrize("place", ["prompt", "--system", "--stop", "--bad-word", "--template-var"])
def test_an_argument_that_is_no_text_is_refused_by_name(chat_model: str, place: str) -> None:
    bad = b"v=\xe9"
    words = ["x", place, bad] if place.startswith("--") else [bad]
    done = run("run", chat_model, *DUMMY, *words)
    assert done.returncode == 2
    what = "the prompt" if place == "prompt" else place
    assert f"error: {what} is not UTF-8: byte 0xe9 at offset 2\n" in done.stderr.decode()


def run(
    *args: str | bytes, env: Mapping[str, str] = ENVIRON
) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [*COMMAND, *args], stdin=subprocess.DEVNULL, capture_output=True, env=env, timeout=120
    )
