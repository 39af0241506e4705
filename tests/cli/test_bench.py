"""`kvrt bench`."""

import csv
import io
import json

import pytest

from .conftest import DUMMY, Kvrt

QUICK = (*DUMMY, "-r", "2", "--quiet")


def test_lists_multiply_and_every_row_says_what_it_was_measured_on(
    kvrt: Kvrt, plain_model: str
) -> None:
    options = ("-p", "8,33", "-n", "4", "-b", "1,3", "-pg", "8,4", "-o", "json")
    result = kvrt("bench", plain_model, *QUICK, *options)
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)
    tests = ["pp8", "pp33", "tg4", "pp8+tg4"]
    assert [(row["batch"], row["test"]) for row in rows] == [(b, t) for b in (1, 3) for t in tests]
    for row in rows:
        assert len(row["samples_ts"]) == 2
        assert row["avg_ts"] == pytest.approx(sum(row["samples_ts"]) / 2, rel=1e-3)
        assert row["median_ts"] > 0
        assert row["stddev_ts"] >= 0
        assert row["build"].startswith("kvrt ")
        assert "torch" in row["build"]
        assert (row["backend"], row["dtype"], row["weights"]) == ("cpu", "float32", "dummy")
        assert row["device"]
        assert row["date"]


def test_a_config_json_alone_is_enough_and_dtypes_and_threads_multiply(
    kvrt: Kvrt, plain_model: str, tmp_path: object
) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    (folder / "config.json").write_text((Path(plain_model) / "config.json").read_text())
    options = ("-p", "0", "-n", "3", "--dtype", "f32,bf16", "-t", "1,2", "-o", "csv")
    result = kvrt("bench", str(folder), *QUICK, *options)
    assert result.exit_code == 0, result.stderr
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    settings = [(row["dtype"], row["threads"]) for row in rows]
    assert settings == [(d, t) for d in ("float32", "bfloat16") for t in "12"]


def test_a_table_for_people(kvrt: Kvrt, plain_model: str) -> None:
    result = kvrt("bench", plain_model, *QUICK, "-p", "8", "-n", "4")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("| model ")
    assert set(lines[1]) <= set("|-: ")
    assert [line.count("|") for line in lines[:4]] == [10] * 4
    assert "±" in lines[2]
    assert "pp8 " in lines[2]
    assert "tg4 " in lines[3]
    assert lines[-1].startswith("kvrt ")


def test_what_is_longer_than_the_context_is_refused(kvrt: Kvrt, plain_model: str) -> None:
    result = kvrt("bench", plain_model, *QUICK, "-p", "100", "--max-model-len", "64")
    assert result.exit_code == 2
    assert "the prompt has 100 tokens" in result.stderr


@pytest.mark.parametrize("form", ["md", "csv", "jsonl"])
def test_rows_are_printed_as_soon_as_they_are_measured(
    kvrt: Kvrt, plain_model: str, form: str
) -> None:
    options = ("-p", "8,100", "-n", "0", "--max-model-len", "64", "-o", form)
    result = kvrt("bench", plain_model, *QUICK, *options)
    assert result.exit_code == 2
    assert "pp8" in result.stdout
