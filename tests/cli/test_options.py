"""Whatever value an option is given, the answer is right or the error is one that is documented."""

import random
from pathlib import Path

import click
import pytest
from kvrt_cli.main import cli

from .conftest import Kvrt

COMMANDS = {
    "run": ("run", "tiny", "def f(", "-n", "1", "-q"),
    "bench": ("bench", "tiny", "-p", "2", "-n", "1", "-r", "1", "--no-warmup", "-q"),
    "doctor": ("doctor", "--only", "python"),
    "llama-server": ("llama-server", "-m", "tiny", "--host", "203.0.113.1"),
    "serve": ("serve", "tiny", "--keys", "keys", "--new-key", "me"),
    "top": ("top", "--once"),
    "ctl": ("ctl", "wake", "nobody", "tiny"),
    "models": ("models",),
    "merge": ("merge", "tiny", "tiny", "tiny"),
    "embed": ("embed", "tiny", "x"),
    "batch": ("batch",),
    "data": ("data",),
    "transcribe": ("transcribe", "x.wav", "--model", "tiny"),
    "rerank": ("rerank", "tiny", "x", "y"),
    "route": ("route", "ftp://nowhere"),
    "usage": ("usage", "nothing.db"),
    "store": ("store", "--memory", "0", "--host", "203.0.113.1"),
    "show": ("show", "tiny", "--backend", "cpu"),
    "config": ("config",),
    "profile-config": ("profile-config",),
    "profile": ("profile", "tiny", "-p", "2", "-n", "1", "-b", "1", "--no-warmup", "-q"),
    "tune": (
        "tune",
        "tiny",
        "-p",
        "2",
        "-n",
        "1",
        "-b",
        "1",
        "--knobs",
        "page-size",
        "--runs",
        "1",
    ),
}
ANY = (
    "", " ", "x", "X" * 5000, "-", "--", "\n", "é", "\udce9", "0", "1", "3", "-1", "-0.0", "1.5",
    "1e-45", "1e400", "nan", "-inf", "9" * 20, "9" * 400, "9" * 5000, "٣", "0x10", "1_0", "1,2",
    "1,", ",", "[1]", "{}", "null", "true", "%s", "{0}", "~nouser/x", "/proc/x", "/dev/null",
    "/etc/passwd", "auto", "tiny", "cpu", "null", "50%", "0%", "101%", "nan%", "1KiB", "9MiB",
    "999999TiB", "host:1KiB", "host:1MiB", "host:", "disk:", "disk:/proc/x:1GiB", "disk:od:1MiB",
    "disk:~nouser/x:1GiB",
    "host:1GiB,host:1GiB", "ngram", "ngram:0", "ngram:65", "ngram:٣", "int8", "../..",
)  # fmt: skip
"""Values for options of every kind: of the right one, of others, and of none."""


USES = [
    (name, param.opts[0], value)
    for name in COMMANDS
    for param in cli.commands[name].params
    if isinstance(param, click.Option) and not param.is_flag and not param.hidden
    for value in (*ANY, *(getattr(param.type, "choices", ())))
]
"""Every option of every command with every value, but those that are passed over."""


def check(kvrt: Kvrt, name: str, option: str, value: str) -> None:
    result = kvrt(*COMMANDS[name], option, value)
    shown = f"{name} {option} {value[:40]!r}: {result.exit_code} {result.stderr[:600]}"
    assert 0 <= result.exit_code <= 5, shown
    assert (result.exit_code == 0) == ("error: " not in result.stderr), shown
    assert "unexpected" not in result.stderr, shown
    assert "Traceback" not in result.stderr, shown
    assert len(result.stderr) < 3000, shown


def test_every_command_is_tried() -> None:
    assert set(COMMANDS) == set(cli.commands)


def test_some_values_of_options_are_taken_or_refused(
    kvrt: Kvrt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = [use for use in USES if use[0] != "doctor"]  # which may be asked for everything
    for name, option, value in random.Random(8).sample(quick, 60):
        check(kvrt, name, option, value)


@pytest.mark.extra
def test_every_value_of_every_option_is_taken_or_refused(
    kvrt: Kvrt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, option, value in USES:
        check(kvrt, name, option, value)
