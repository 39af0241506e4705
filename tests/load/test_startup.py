"""`kvrt bench startup`: the parts of a start add up, and a snapshot changes no answer."""

import json

import pytest

from kvrt.bench.startup import PARTS, Start, medians, parts_of
from tests.cli.conftest import Kvrt


def test_parts_of_a_start_add_up_to_it_also_where_one_took_no_time() -> None:
    marks = {"interpreter": 10.5, "modules": 12.0, "device": 12.0, "files": 12.5, "weights": 14.0,
             "server": 15.0, "first token": 16.0}  # fmt: skip
    found = parts_of(10.0, marks)
    assert list(found) == list(PARTS)
    assert found["weights"] == 1.5
    assert found["memory"] == 0.0, "nobody has told when it ended"
    assert sum(found.values()) == 6.0
    starts = [Start({**found, "modules": seconds}, 1.0, 9, 8, "x") for seconds in (1.0, 3.0, 8.0)]
    told = medians(starts)
    assert told["seconds"]["modules"] == 3.0
    assert told["whole"] == starts[1].whole


@pytest.mark.extra
def test_a_snapshot_has_weights_and_pages_of_the_same_answer(kvrt: Kvrt) -> None:
    options = ("-r", "1", "-p", "64", "--json", "-q", "--", "--quantize", "int8")
    result = kvrt("bench", "startup", "tiny", *options)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    nothing, snapshot = (told["medians"][name] for name in ("nothing", "snapshot"))
    assert nothing["cached_tokens"] == 0
    assert snapshot["cached_tokens"] >= 48
    for each in (nothing, snapshot):
        assert min(each["seconds"].values()) >= 0
        assert each["seconds"]["modules"] > 0
        assert each["whole"] < each["processor"] * 10
    (one,), (other,) = told["starts"].values()
    assert one["text"] == other["text"]


@pytest.mark.extra
def test_a_server_that_does_not_start_says_why(kvrt: Kvrt) -> None:
    result = kvrt("bench", "startup", "tiny", "-r", "1", "--", "--quantize", "int3")
    assert result.exit_code == 1
    assert "int3" in result.stderr
