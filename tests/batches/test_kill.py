"""A batch whose process is killed, at any call and at any moment, and begun again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .killing import Killing

FOLDER = Path(__file__).parent


@pytest.mark.promise("P33")
def test_a_kill_at_any_call_that_keeps_something_loses_and_doubles_no_line(tmp_path: Path) -> None:
    """Of the calls to the system and the commits: before each of them, and in the middle of
    writing."""
    command = [sys.executable, str(FOLDER / "dying.py"), str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    told = [json.loads(line) for line in ran.stdout.splitlines()]
    assert sum(each["torn"] for each in told) > 15
    assert sum(not each["torn"] for each in told) > 15
    for each in told:
        bad = [str(n) for n in range(0, 10, 4)]
        assert each["names"]["errors"] == bad, each
        assert each["names"]["out"] == [str(n) for n in range(10) if str(n) not in bad], each
        assert (each["status"], each["total"], each["done"], each["failed"]) == (
            "completed", 10, 7, 3,
        ), each  # fmt: skip
        assert each["said"] == 10, each
        assert not [name for name in each["left"] if ".part" in name], each


@pytest.mark.promise("P33")
@pytest.mark.parametrize(
    ("lines", "kills"),
    [
        (2000, 20),
        pytest.param(5000, 20, marks=[pytest.mark.extra, pytest.mark.timeout(1200)]),
        pytest.param(50_000, 20, marks=[pytest.mark.extra, pytest.mark.timeout(3600)]),
    ],
)
def test_a_model_that_is_killed_at_random_answers_each_line_once(
    tmp_path: Path, lines: int, kills: int
) -> None:
    """The command itself, on the bundled model, killed twenty times while it answers."""
    killing = Killing(tmp_path, lines, seed=33)
    killing.run(kills)
    assert killing.kills == kills
    killing.check()
