"""`kvrt bench serve` against a real server, and in this process."""

import csv
import json
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvrt.bench.words import load
from tests.cli.conftest import Kvrt
from tests.server.conftest import Server, until

SMALL = ("-p", "24-40", "-n", "6", "--warmup", "0", "-q")


def test_what_was_measured_is_what_the_server_has_answered(
    kvrt: Kvrt, measured: Server, tmp_path: Path
) -> None:
    files = {name: tmp_path / f"run.{name}" for name in ("json", "csv", "html")}
    more = ("--prefixes", "1", "--prefix-tokens", "64", "--turns", "2", "--cost-per-hour", "2")
    before = measured.metrics()
    result = kvrt(
        "bench", "serve", "--url", measured.url, "-c", "3", "--requests", "12", *SMALL, *more,
        "-o", str(files["json"]), "--csv", str(files["csv"]), "--html", str(files["html"]),
        "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    run, told = load(files["json"]), json.loads(result.stdout)
    assert len(run.records) == 12
    assert {each.tokens for each in run.records} == {6}
    assert all(1 <= len(each.pieces) <= 6 for each in run.records)
    first, second = ([each for each in run.records if each.turn == turn] for turn in (0, 1))
    assert len(first) == len(second) == 6
    lengths = {each.talk: each.prompt_tokens or 0 for each in first}
    for each in second:  # it has the first turn in its prompt, and finds it cached
        assert (each.prompt_tokens or 0) > lengths[each.talk] + 20
        assert (each.cached_tokens or 0) >= 64
    assert all(24 + 64 - 12 <= length <= 40 + 64 + 12 for length in lengths.values())
    most = max(sum(one.sent <= each.sent < one.end for one in run.records) for each in run.records)
    assert most <= 3, "a closed loop of three"
    assert told["requests"] == {"good": 12, "failed": 0, "cut": 0}
    assert told["tokens"]["output"] == 72
    assert told["output_tokens_per_s"] == pytest.approx(72 / run.seconds)
    assert told["ttft"]["p50"] <= told["ttft"]["p95"] <= told["e2e"]["p99"]
    parts = told["first_token"]
    assert sum(parts.values()) == pytest.approx(told["ttft"]["mean"]), "the server told its part"
    assert 0 <= parts["queued"] < parts["queued"] + parts["computing"] < told["ttft"]["mean"]
    assert 0 < run.target["round_trip_s"] < told["ttft"]["mean"], "by a connection alone"
    assert told["memory"]["pinned_peak"] <= told["memory"]["held_peak"]
    assert told["memory"]["held_peak"] <= told["memory"]["limit"]
    assert all(each["joules"] is not None or each["why"] for each in told["energy"]["counters"])
    after = measured.metrics()
    name = "kvrt_generated_tokens_total"
    assert after[name] - before[name] == 72 + 2, "two more found out how long words are"
    rows = list(csv.DictReader(files["csv"].read_text().splitlines()))
    assert [float(row["ttft_ms"]) for row in rows] == pytest.approx(
        [1000 * (each.ttft or 0) for each in run.records], abs=0.01
    )
    page = files["html"].read_text()
    assert page.count("<svg") >= 9
    assert not re.search(r"https?://(?!127)|<script|src=|@import|url\(", page)


def test_an_open_loop_asks_when_it_is_due_whoever_still_waits(
    kvrt: Kvrt, measured: Server, tmp_path: Path
) -> None:
    path = tmp_path / "run.json"
    options = ("-r", "20", "--arrivals", "steady", "--requests", "10", "-o", str(path))
    result = kvrt("bench", "serve", "--url", measured.url, *SMALL, *options)
    assert result.exit_code == 0, result.stderr
    run = load(path)
    assert [each.due for each in run.records] == pytest.approx([n / 20 for n in range(10)])
    assert all(each.sent >= each.due for each in run.records)
    assert "10 answers" in result.stdout


def test_a_model_in_this_process_is_measured_in_the_same_way(kvrt: Kvrt, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    options = ("-c", "2", "--requests", "4", "--backend", "cpu", "-o", str(path), "--cache", "warm")
    result = kvrt("bench", "serve", "tiny", *SMALL, *options)
    assert result.exit_code == 0, result.stderr
    run = load(path)
    assert run.target["kind"] == "inside"
    assert [each.tokens for each in run.records] == [6] * 4
    assert all((each.cached_tokens or 0) >= 16 for each in run.records), "it was asked before"
    assert run.held
    assert run.clocks["first_mean"] > run.clocks["queued_mean"] >= 0
    peak = run.target["operations_per_s"]
    assert peak > run.target["answer_token_operations"] > run.target["prompt_token_operations"] > 0


def test_a_request_that_fails_fails_alone(kvrt: Kvrt, measured: Server, tmp_path: Path) -> None:
    data, path = tmp_path / "data.jsonl", tmp_path / "run.json"
    prompts = ["a", "long " * 4000, "b"]
    data.write_text("".join(json.dumps({"prompt": each}) + "\n" for each in prompts))
    options = ("--data", str(data), "-n", "4", "--warmup", "0", "-c", "1", "-o", str(path))
    result = kvrt("bench", "serve", "--url", measured.url, *options)
    assert result.exit_code == 0, result.stderr
    assert [each.good for each in load(path).records] == [True, False, True]
    assert "1 of 3 requests failed; the first: the server answers 400" in result.stderr


def test_ctrl_c_keeps_what_was_measured(
    start: Callable[..., "subprocess.Popen[bytes]"], measured: Server, tmp_path: Path
) -> None:
    path = tmp_path / "run.json"
    name = "kvrt_generated_tokens_total"
    before = measured.metrics()[name]
    options = ("--requests", "1000000", "-c", "2", "-p", "24", "-n", "12", "-o", str(path))
    process = start("bench", "serve", "--url", measured.url, *options)
    until(lambda: measured.metrics()[name] > before + 100, 60)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    run = load(path)
    assert run.cut
    assert len(run.good) >= 5
    assert b"cut short" in out
    until(lambda: measured.used_pages == 0)  # what was cut is not computed to its end


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ((), 2, "name one thing to measure"),
        (("tiny", "--url", "http://x"), 2, "name one thing to measure"),
        (("--url", "ftp://x"), 2, "is no address of a server"),
        (("--url", "http://127.0.0.1:1"), 1, "gives no answer"),
        (("--url", "http://x", "--page-size", "8"), 2, "--page-size is of a model in this process"),
        (("tiny", "--served", "x"), 2, "--served is of a server"),
        (("tiny", "-c", "1", "-r", "1"), 2, "--clients is a closed loop"),
        (("tiny", "--arrivals", "trace"), 2, "takes its times from a file"),
        (("tiny", "-r", "nan"), 2, "is not a number above 0"),
        (("tiny", "--seconds", "0"), 2, "is not a time above 0"),
        (("tiny", "-p", "x"), 2, "'x' is no length"),
        (("tiny", "--token-weights", "1:2"), 2, "is no weights of tokens"),
        (("tiny", "--data", "nowhere"), 2, "is no file"),
        (("tiny", "-o", "nowhere/x"), 2, "is no folder"),
        (("tiny", "-o", "x", "--csv", "x"), 2, "are different files"),
        (("--url", "http://x", "--key-file", "nowhere"), 2, "holds no key"),
        (("--url", "http://x", "--field", "x"), 2, "it is NAME=VALUE"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_asked(
    kvrt: Kvrt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any, code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = kvrt("bench", "serve", *options)
    assert result.exit_code == code, result.stderr
    assert said in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_first_argument_that_names_no_command_is_a_model(kvrt: Kvrt) -> None:
    told = kvrt("bench", "--help").stdout
    assert "--new-tokens" in told
    assert "A server under load." in told
    assert "there is no such folder or file" in kvrt("bench", "serves/x/y").stderr
    assert "--burstiness" in kvrt("bench", "serve", "--help").stdout
