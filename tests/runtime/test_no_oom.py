"""No setting ends in a process that the system kills for its memory."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import CONFIG
from .groups import Group, own_group

WIDE = {"head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 8}
"""A token's keys and values take 64 KiB, and what it is computed in half as much."""


@pytest.fixture
def wide_lm(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | WIDE))
    return tmp_path


@pytest.fixture
def group() -> Iterator[Group]:
    with own_group() as made:
        if made is None:
            pytest.skip("no control group can be made here (root, and one that may be written to)")
        yield made


def lived(group: Group, model: Path, *what: str) -> subprocess.CompletedProcess[str]:
    """Of a process with little memory, in which others take of it."""
    return subprocess.run(
        [sys.executable, "-m", "tests.runtime.squeezed", str(group.path), str(model), *what],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip


def told(group: Group, done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, group.killed) == (0, 0), (lines[-1:], done.stderr[-3000:])
    return lines


def test_a_process_gives_pages_back_before_it_is_killed_and_every_request_ends_as_it_should(
    group: Group, wide_lm: Path
) -> None:
    (draw,) = told(group, lived(group, wide_lm, "watched"))
    assert (draw["answered"], draw["errors"]) == (draw["asked"], [])
    assert draw["still_answers"]
    assert draw["lowered"], "or this shows nothing"


@pytest.mark.extra
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(40))
def test_whatever_the_settings_are(group: Group, wide_lm: Path, number: int) -> None:
    """They are refused, with what is free and what they need, or all requests are answered."""
    (draw,) = told(group, lived(group, wide_lm, "watched", str(number)))
    if "refused" in draw:
        assert re.search(r"of [\d.]+ MiB that are free, .* may need [\d.]+ MiB", draw["refused"])
        return
    assert (draw["answered"], draw["errors"]) == (draw["asked"], []), draw["settings"]
    assert draw["still_answers"], draw["settings"]


def test_without_the_watch_it_is_killed(group: Group, wide_lm: Path) -> None:
    """What the test above would not show otherwise."""
    done = lived(group, wide_lm, "unwatched")
    assert group.killed >= 1 or done.returncode < 0, done.stdout + done.stderr[-3000:]
