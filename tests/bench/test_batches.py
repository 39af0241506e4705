"""What `ci/batches` makes of what it measures."""

import json
from pathlib import Path

import pytest

from .batches import kept
from .batches.__main__ import table
from .batches.lines import prompts, write


def test_everybody_is_asked_the_same_and_no_repeat_what_an_earlier_one_was(tmp_path: Path) -> None:
    assert prompts(5, 1) == prompts(5, 1) != prompts(5, 2)
    path = write(tmp_path / "x", prompts(5, 1), 3)
    lines = [json.loads(each) for each in path.read_text().splitlines()]
    assert [each["body"]["messages"][0]["content"] for each in lines] == prompts(5, 1)


def test_what_is_kept_is_of_runs_that_were_neighbours() -> None:
    found = {
        "embedded": [(1.0, 2.0), (2.0, 3.0), (4.0, 1.0)],
        "batch": [(1.0, 4.0), (4.0, 3.0), (5.0, 1.0)],
    }
    told = kept.summary(found)
    assert told == pytest.approx({"kept": 0.8, "kept_of_work": 1.0})
    row = {"tool": "other", "lines": 5, "seconds": 2.0, "peak": 2**30, "kept": 3, "rest": 1.0}
    said = table({"date": "d", "machine": "m", "commit": "c", "shape": "s", "threads": 2,
                  "kept": {"lines": 5, "new": 3, **told}, "beside": [row]})  # fmt: skip
    assert "keep 0.800 of the embedded" in said
    assert "| other | 5 | 2.0 s | 1.00 GiB | 3 | 1.0 s |" in said
