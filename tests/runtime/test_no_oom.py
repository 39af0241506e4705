"""No setting ends in a process that the system kills for its memory."""

import json
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


def lived(group: Group, model: Path, seed: int, count: int) -> list[dict[str, Any]]:
    """What became of draws of settings, in a process with little memory."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime.squeezed", str(group.path), str(model), str(seed),
         str(count)],
        capture_output=True, text=True, timeout=60 + 60 * count, check=False,
    )  # fmt: skip
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, group.killed) == (0, 0), (told[-1:], done.stderr[-3000:])
    assert len(told) == count
    return told


def check(told: list[dict[str, Any]]) -> None:
    for draw in told:
        if "not_opened" in draw:
            assert draw["fix"], draw
            continue
        assert draw["still_answers"], draw
        assert all(error.startswith("CapacityError") for error in draw["errors"]), draw
    assert sum(draw["answered"] for draw in told) > sum(draw["refused"] for draw in told)


def test_whatever_the_settings_a_process_with_little_memory_answers_or_says_why_not(
    group: Group, wide_lm: Path
) -> None:
    """While somebody else takes memory, too, and gives it back."""
    check(lived(group, wide_lm, 1, 4))


@pytest.mark.extra
def test_whatever_a_hundred_settings(group: Group, wide_lm: Path) -> None:
    check(lived(group, wide_lm, 1000, 100))
