"""`kvrt bench`."""

import csv
import io
import json

import pytest
from kvrt_cli.benching.workload import Row, Workload

from .conftest import DUMMY, Kvrt
from .test_stats import FIRST, SECOND

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


@pytest.mark.parametrize(("more", "cached"), [((), 2 * 32), (("--no-warmup",), 32)])
def test_what_warms_up_is_not_counted_and_columns_are_those_of_the_test(
    kvrt: Kvrt, plain_model: str, more: tuple[str, ...], cached: int
) -> None:
    """A prompt of 33 tokens begins with two pages that any run before it has computed."""
    options = ("-p", "33", "-n", "0", "-b", "1", "--prefix-cache", "--threads", "2", *more)
    result = kvrt("bench", plain_model, *QUICK, *options, "-o", "jsonl")
    assert result.exit_code == 0, result.stderr
    (row,) = map(json.loads, result.stdout.splitlines())
    assert (row["cached_tokens"], row["preemptions"]) == (cached, 0)
    assert (row["n_prompt"], row["n_gen"], row["batch"], row["test"]) == (33, 0, 1, "pp33")
    assert (row["page_size"], row["max_batch_tokens"], row["threads"]) == (16, 512, 2)
    assert (row["kv_dtype"], row["prefix_cache"], row["offload"]) == ("float32", True, "none")
    assert row["kv_peak_bytes"] > 0
    assert row["weight_bytes"] > 4 * 258 * 64


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-p", "0", "-n", "0"), "nothing to measure"),
        (("-p", "1,x"), "'1,x' is not a list of whole numbers"),
        (("-p", "-1"), "-1 is not from 0 to 10000000"),
        (("-b", "0"), "0 is not from 1 to 10000000"),
        (("-n", "10000001"), "10000001 is not from 0 to 10000000"),
        (("-pg", "8"), "'8' is not two numbers"),
    ],
)
def test_tests_that_make_no_sense_are_refused(
    kvrt: Kvrt, plain_model: str, options: tuple[str, ...], said: str
) -> None:
    result = kvrt("bench", plain_model, *QUICK, *options)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_test_of_a_benchmark_counts_the_tokens_of_its_name() -> None:
    assert [Workload(8, 0, 1).name, Workload(0, 4, 1).name] == ["pp8", "tg4"]
    assert Workload(8, 0, 3).rate([FIRST] * 3, 2.0) == 8 * 3 / 2.0
    assert Workload(8, 4, 3).rate([FIRST] * 3, 2.0) == (8 + 4) * 3 / 2.0
    assert Workload(0, 4, 2).rate([FIRST, SECOND], 99.0) == 4 / (5 - 3) + 4 / (2 - 1)
    asked = [Workload(8, 0, 1), Workload(8, 4, 1), Workload(0, 4, 1)]
    assert [work.params.max_tokens for work in asked] == [1, 4, 5], (
        "after a first token that is not"
    )
    assert all(work.params.ignore_eos for work in asked)
    prompts = Workload(8, 0, 3).prompts(97)
    assert prompts == Workload(8, 0, 3).prompts(97)
    assert len({tuple(prompt) for prompt in prompts}) == 3
    assert {len(prompt) for prompt in prompts} == {8}
    assert all(0 <= token < 97 for prompt in prompts for token in prompt)
    assert [len(prompt) for prompt in Workload(0, 4, 2).prompts(97)] == [1, 1]


def test_samples_have_a_mean_a_median_and_a_deviation() -> None:
    row = Row({}, (1.0, 2.0, 6.0))
    assert (row.mean, row.median, row.deviation) == (3.0, 2.0, pytest.approx(7.0**0.5))
    assert Row({}, (4.0,)).deviation == 0
