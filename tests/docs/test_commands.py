"""Every command on a page is one that there is, with options that it has."""

import difflib
import importlib.util
import itertools
import json
import os
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from kvrt_cli.main import cli
from kvrt_cli.terminal import Terminal

from kvrt.errors import ConfigError, KvrtError

from .pages import OURS, ROOT, Block, Command, blocks_of, commands_of, pages

BLOCKS = [block for page in pages() for block in blocks_of(page) if block.is_shell]
OTHER_MODULES = ("dynamo", "guidellm", "http", "sglang", "venv")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def taken(
    command: click.Command, name: str, words: list[str], parent: click.Context | None
) -> None:
    """What `kvrt` does up to where a command runs: every option is known, and its value is one.

    Raises:
        click.UsageError: it does not take them.
    """
    try:
        context = command.make_context(name, words, parent=parent, obj=Terminal())
    except click.exceptions.Exit:  # --help, --version
        return
    except ConfigError as error:
        if "No such file" not in str(error):
            raise
        return  # the reader's own profile: what it is to be read for has been taken
    with context:
        if isinstance(command, click.Group):
            rest = [*context._protected_args, *context.args]
            if not rest:  # a group alone, which shows its help or runs by itself
                return
            inner, found, rest = command.resolve_command(context, rest)
            assert inner
            assert found
            taken(found, inner, rest, context)


def check_kvrt(words: list[str]) -> None:
    taken(cli, "kvrt", words, None)


def check_pip(words: list[str]) -> None:
    for extras in re.findall(r"kvrt\[([\w,]+)\]", " ".join(words)):
        unknown = set(extras.split(",")) - PROJECT["optional-dependencies"].keys()
        assert not unknown, f"there is no extra {unknown}"


def check_make(words: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    wanted = [word for word in words if "=" not in word]
    assert set(wanted) <= set(targets)


def check_python(words: list[str]) -> None:
    """What follows a module of ours may be a command of its own."""
    if words[0] == "-m":
        if words[1].split(".")[0] in OTHER_MODULES:
            return
        assert importlib.util.find_spec(words[1]), words[1]
        if words[1] == "kvrt_cli":
            check_kvrt(words[2:])
        elif words[1] == "tests.emulator" and "-m" in words[2:]:
            check_python(words[words.index("-m", 2) :])
    elif not words[0].startswith("-"):
        assert (ROOT / words[0]).is_file(), words[0]


def check_pytest(words: list[str]) -> None:
    for word in words:
        if word.startswith("tests/"):
            assert (ROOT / word).exists(), word
        elif word.startswith("kvrt.testing"):
            assert importlib.util.find_spec(word), word


def check_curl(words: list[str]) -> None:
    """Its route is one that the code names, and what it sends is JSON."""
    (route,) = (m[1] for w in words if (m := re.fullmatch(r"(?:http://)?[\w.]+:\d+(/[^?]*)?.*", w)))
    sources = [p for f in ("kvrt", "examples", "deploy") for p in (ROOT / f).rglob("*.py")]
    named = re.compile(rf"{re.escape(route)}(?![\w/])")
    assert any(named.search(path.read_text()) for path in sources), f"no route is {route}"
    for option, value in itertools.pairwise(words):
        if option in ("-d", "--data", "--json") and not value.startswith("@"):
            json.loads(value)


def check_npm(words: list[str]) -> None:
    if words[0] == "run":
        scripts = [
            json.loads(p.read_text())["scripts"] for p in ROOT.glob("clients/*/package.json")
        ]
        assert any(words[1] in found for found in scripts), words[1]


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "kvrt": check_kvrt,
    "pip": check_pip,
    "make": check_make,
    "python": check_python,
    "pytest": check_pytest,
    "curl": check_curl,
    "npm": check_npm,
}


def check(command: Command) -> None:
    program, *words = (os.path.expanduser(word) for word in command.words)
    program = program.rstrip("0123456789.")  # python3.11
    if program in CHECKS:
        CHECKS[program](words)
    elif program.startswith("ci/"):
        script = ROOT / program
        assert script.is_file(), "it is not there"
        assert script.stat().st_mode & 0o100, "it cannot be run"
    else:  # of others: nothing of theirs is here to hold it against
        near = difflib.get_close_matches(program, OURS, cutoff=0.75)
        assert not near, f"{program} is not {near[0]}"


def test_every_command_is_one_that_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    commands = [command for block in BLOCKS for command in commands_of(block)]
    assert len(commands) > 150
    wrong = []
    for command in commands:
        try:
            check(command)
        except (AssertionError, click.UsageError, KvrtError, ValueError) as error:
            said = error.format_message() if isinstance(error, click.UsageError) else str(error)
            wrong.append(f"{command.where}: {shlex.join(command.words)}: {said}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line",
    [
        "kvrt runn tiny",
        "kvrt run tiny --temprature 1",
        "kvrt run tiny --page-size many",
        "cat x | kvrt embed MODEL --pooling none",
        "kvrt ctl shrink gpu0 chat",
        "kvrt batch run -i a.jsonl",
        "pip install 'kvrt[serv]'",
        "make tests",
        "ci/everything",
        "python -m tests.nothing",
        "python -m tests.emulator cuda -m kvrt_cli doctr",
        "pytest tests/nothing.py",
        "curl http://127.0.0.1:8000/v1/compleat",
        "curl http://127.0.0.1:8000/v1/completions -d '{'",
        "npm run bild",
        "kvrrt run",
    ],
)
def test_a_command_that_is_wrong_is_found(line: str) -> None:
    (*_, command) = commands_of(Block("page.md", 1, "sh", line))
    with pytest.raises((AssertionError, click.UsageError, ValueError)):
        check(command)


def test_commands_are_taken_from_blocks_as_a_reader_would() -> None:
    block = Block(
        "page.md", 3, "",
        "$ kvrt run tiny 'a  b' \\\n    -n 3 < in.txt\nkvrt said this\n"
        "$ A=1 git diff | kvrt run MODEL - > out  # with a word on it\n"
        "$ kvrt models                 what runs here\n",
    )  # fmt: skip
    assert [(c.where, c.words) for c in commands_of(block)] == [
        ("page.md:3", ("kvrt", "run", "tiny", "a  b", "-n", "3")),
        ("page.md:6", ("git", "diff")),
        ("page.md:6", ("kvrt", "run", "MODEL", "-")),
        ("page.md:7", ("kvrt", "models")),
    ]
