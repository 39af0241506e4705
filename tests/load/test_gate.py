"""`kvrt bench compare` and `kvrt bench gate`: what is found in files, and what is said of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvrt.bench.comparing import compared
from kvrt.bench.figures import summary
from kvrt.bench.others import read_runs
from kvrt.bench.statistics import FIGURES, Figure, draws, interval, value
from kvrt.bench.words import CUT, Record, Run, load, save
from kvrt.errors import ConfigError
from tests.cli.conftest import Kvrt

from .runs import TOKENS, as_aiperf, as_guidellm, record, run


def kept(folder: Path, name: str, made: Run) -> str:
    path = folder / f"{name}.json"
    save(made, path, summary(made))
    return str(path)


def test_a_planted_regression_fails_the_gate_and_a_rerun_passes(kvrt: Kvrt, tmp_path: Path) -> None:
    before = kept(tmp_path, "before", run(1))
    again = kept(tmp_path, "again", run(2))
    slower = kept(tmp_path, "slower", run(3, slower=1.3))
    faster = kept(tmp_path, "faster", run(4, slower=0.7))
    for path, code in ((again, 0), (slower, 1), (faster, 0), (before, 0)):
        result = kvrt("bench", "gate", path, "--baseline", before)
        assert result.exit_code == code, result.stdout
    told = kvrt("bench", "gate", slower, "--baseline", before, "--json").stdout
    failed = {each["figure"] for each in json.loads(told)["checks"] if not each["kept"]}
    assert {"ttft_p50", "tpot_p50", "tpot_p95", "itl_p95", "e2e_p50"} <= failed
    assert not failed & {"requests_per_s", "output_tokens_per_s", "errors"}, "it was asked as often"
    assert kvrt("bench", "gate", slower, "--baseline", before, "--tolerance", "60%").exit_code == 0


@pytest.mark.parametrize(
    ("objectives", "code"),
    [
        ("ttft_p95=500ms,errors=1%", 0),
        ("ttft_p95=500ms,tpot_p50=1ms", 1),
        ("requests_per_s=5", 0),
        ("requests_per_s=500", 1),
        ("output_tokens_per_s=50,e2e_mean=1s", 0),
        ("itl_p99.9=1s", 0),
        ("errors=0", 1),
        ("goodput=90%", 0),
        ("goodput=99%", 1),
        ("cost_per_1k_requests=1", 0),
        ("cost_per_1m_output_tokens=0.0001", 1),
    ],
)
def test_an_objective_is_kept_or_not(
    kvrt: Kvrt, tmp_path: Path, objectives: str, code: int
) -> None:
    made = run(1, per_hour=3.0)
    bad = replace(made.records[7], error="it failed")
    late = record(8, 9.0, 0.01)
    cut = replace(made.records[9], error=CUT)  # counts neither as good nor as bad
    path = kept(tmp_path, "run", replace(made, records=[*made.records[:7], bad, late, cut,
                                                        *made.records[10:]]))  # fmt: skip
    limits = "ttft=500ms,tpot=50ms"
    result = kvrt("bench", "gate", path, "--slo", objectives, "--per-request", limits)
    assert result.exit_code == code, result.stdout + result.stderr
    assert ("FAIL" in result.stdout) == bool(code)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "there is nothing to keep"),
        (("--slo", "x=1"), "'x' is no figure that is known"),
        (("--slo", "ttft_p95"), "is no objective"),
        (("--slo", "ttft_p95=1%"), "is not a time"),
        (("--slo", "errors=-1"), "is not a share"),
        (("--slo", "requests_per_s=nan"), "is not a number"),
        (("--slo", "cost_per_1k_requests=1"), "does not say cost_per_1k_requests"),
        (("--slo", "wh_per_1k_requests=1"), "does not say wh_per_1k_requests"),
        (("--slo", "goodput=90%"), "add --per-request"),
        (("--slo", "errors=1", "--per-request", "x=1"), "is no limit of an answer"),
        (("--baseline", "nowhere"), "cannot be read"),
        (("--baseline", "text"), "is no JSON"),
        (("--baseline", "other.json"), "is no result that is known"),
        (("--baseline", "."), "is no folder of aiperf"),
        (("--baseline", "new.json"), "version 2 of the format"),
        (("--baseline", "broken.json"), "is damaged"),
        (("--slo", "errors=1", "--tolerance", "x"), "is not a share"),
    ],
)
def test_what_cannot_be_judged_is_bad_input(
    kvrt: Kvrt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found = json.loads(Path(kept(tmp_path, "run", run(1, count=5))).read_text())
    Path("text").write_text("{")
    Path("other.json").write_text("{}")
    Path("new.json").write_text(json.dumps({**found, "version": 2}))
    Path("broken.json").write_text(json.dumps({**found, "records": [{"talk": 0}]}))
    result = kvrt("bench", "gate", "run.json", *options)
    assert result.exit_code == 2, result.stdout
    assert said in result.stderr


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    made = run(1, count=20)
    again = load(Path(kept(tmp_path, "run", made)))
    assert again.held == list(made.held)
    assert again.energy == list(made.energy)
    for ours, theirs in zip(made.records, again.records, strict=True):
        assert theirs.pieces == pytest.approx(ours.pieces, abs=1e-6)
        assert (theirs.tokens, theirs.good) == (ours.tokens, ours.good)


def test_times_are_what_they_are_called() -> None:
    one = Record(0, 0, 0.0, 1.0, 2.5, pieces=(0.5, 0.75, 1.5), output_tokens=5)
    assert (one.ttft, one.tpot, one.e2e) == (0.5, 0.25, 1.5)
    assert one.gaps == (0.25, 0.75)
    assert Record(0, 0, 0.0, 1.0, 2.0, pieces=(0.5,)).tpot is None
    made = run(1)
    found = summary(made)
    assert found["tokens"] == {"prompt": 200 * 34, "cached": 200 * 16, "output": 200 * TOKENS}
    assert found["requests_per_s"] == pytest.approx(200 / made.seconds)
    for name in ("requests_per_s", "output_tokens_per_s"):
        drawn = draws(made, Figure.read(name))
        assert drawn is not None
        assert drawn.mean() == pytest.approx(found[name], rel=0.02)


def test_intervals_hold_what_other_runs_come_to() -> None:
    """Of a hundred runs of the same kind, about 95 in 100 are in the interval around equal."""
    figure = Figure.read("tpot_p50")
    inside = 0
    for seed in range(0, 100, 2):
        found = compared(run(seed, count=100), run(seed + 1, count=100), figure)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 1 <= found.high
    assert inside >= 43
    drawn = draws(run(1), figure)
    assert drawn is not None
    low, high = interval(drawn)
    assert low < (value(run(1), figure) or 0) < high


def test_runs_stand_side_by_side_and_those_of_others_too(kvrt: Kvrt, tmp_path: Path) -> None:
    """The same requests, as kvrt, guidellm and aiperf write them, have the same figures."""
    made = run(1, count=40)
    ours = kept(tmp_path, "ours", made)
    theirs, folder = as_guidellm(made, tmp_path / "guidellm.json"), as_aiperf(made, tmp_path / "ai")
    result = kvrt("bench", "compare", ours, str(theirs), str(folder), "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert set(told["figures"]) == set(FIGURES)
    for name, found in told["figures"].items():
        for each in found["others"]:
            if name == "itl_p95":
                assert each["verdict"] == "unknown"
            else:
                assert each["value"] == pytest.approx(found["base"], rel=1e-3), name
    table = kvrt("bench", "compare", ours, str(theirs)).stdout
    assert table.splitlines()[0] == "| figure | run 1 | guidellm |"
    assert kvrt("bench", "compare", ours).exit_code == 2


def test_files_of_others_that_are_not_as_expected_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"benchmarks": [{}]}')
    with pytest.raises(ConfigError, match="is not as guidellm"):
        read_runs(path)
    path = tmp_path / "x.jsonl"
    path.write_text('{"metadata": {}}\n')
    with pytest.raises(ConfigError, match=r"line 1 is not as aiperf"):
        read_runs(path)
