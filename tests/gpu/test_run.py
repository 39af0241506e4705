"""A run goes on after a failure, keeps to its time, and leaves results whatever happens."""

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import kvrt.testing.suite
from tests.bench.gpu.timing import Clock
from tests.gpu import report, run, steps, wheels
from tests.gpu.steps import Step


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where results go; nothing is written into the tree."""
    for module in (run, steps):
        monkeypatch.setattr(module, "ROWS", tmp_path / "rows.jsonl")
        monkeypatch.setattr(module, "MACHINE", tmp_path / "machine.json")
    return tmp_path / "out"


ALL = steps.steps("cuda", small=False, native=True)


def python(name: str, code: str, seconds: int = 0, **options: Any) -> Step:
    return Step(name, (sys.executable, "-c", code), seconds, **options)


def results(out: Path) -> Any:
    (path,) = out.glob("*.json")
    return json.loads(path.read_text())


def statuses(out: Path) -> dict[str, str]:
    return {step["name"]: step["status"] for step in results(out)["steps"]}


def test_a_step_that_fails_stops_no_other_and_is_told_at_the_end(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [python("bad", "print('the reason'); exit(3)"), python("good", "print('2 passed')")]
    assert run.run(chosen, "cpu", out, None, small=False) == 1
    assert statuses(out) == {"bad": "failed", "good": "passed"}
    assert results(out)["steps"][0]["tail"] == ["the reason"]
    assert "| bad | **failed** |" in capsys.readouterr().out
    (page,) = out.glob("*.md")
    assert "the reason" in page.read_text()


def test_all_is_well_when_all_steps_pass(out: Path) -> None:
    assert run.run([python("good", "")], "cpu", out, None, small=False) == 0


def test_nothing_runs_without_what_is_vital(out: Path) -> None:
    chosen = [python("install", "exit(1)", vital=True), python("next", "")]
    assert run.run(chosen, "cpu", out, None, small=False) == 1
    assert statuses(out) == {"install": "failed", "next": "left out"}
    assert results(out)["steps"][1]["summary"] == "install failed"


def test_what_does_not_fit_the_budget_is_left_out_and_named(out: Path) -> None:
    chosen = [python("long", "", 100), python("short", "", 1)]
    assert run.run(chosen, "cpu", out, 50, small=False) == 0
    assert statuses(out) == {"long": "left out", "short": "passed"}
    assert results(out)["steps"][0]["summary"].startswith("needs about 100 s; 50 s are left")


def test_a_step_is_ended_with_all_it_started_when_the_time_is_up(out: Path, tmp_path: Path) -> None:
    number = tmp_path / "number"
    child = f"import os, time; open({str(number)!r}, 'w').write(str(os.getpid())); time.sleep(10)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    begin = time.monotonic()
    assert run.run([python("hangs", code, 1)], "cpu", out, 1.5, small=False) == 1
    assert time.monotonic() - begin < 3.5
    assert statuses(out) == {"hangs": "timed out"}
    until_ended(int(number.read_text()))


def test_a_step_that_hangs_leaves_the_others_their_time(out: Path) -> None:
    chosen = [python("hangs", "import time; time.sleep(60)", 1), python("good", "", 20)]
    assert run.run(chosen, "cpu", out, 50, small=False) == 1
    assert statuses(out) == {"hangs": "timed out", "good": "passed"}


def until_ended(process: int) -> None:
    end = time.monotonic() + 5
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(process).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end, f"process {process} is still alive"
            time.sleep(0.01)


def test_a_step_s_json_is_kept_also_behind_warnings(out: Path) -> None:
    code = """print('a warning'); print('{"summary": "3 devices"}')"""
    run.run([python("doctor", code, json=True)], "cpu", out, None, small=False)
    (step,) = results(out)["steps"]
    assert step["data"] == {"summary": "3 devices"}
    assert step["summary"] == "3 devices"


class Event:
    """An event of a device that does its work at once."""

    def __init__(self, **_: object) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: "Event") -> float:
        return (end.at - self.at) * 1e3


def test_a_gpu_s_work_is_timed_by_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    clock = Clock("cpu", small=True)
    clock.on_host = False
    assert 0.01 < clock.seconds(lambda: time.sleep(0.01)) < 0.1
    assert 0.01 < clock.back_to_back(lambda: time.sleep(0.01)) < 0.1
    assert clock.copy_bandwidth() > 1e8


ROW = {"group": "decode", "case": "batch 1", "by": "kvrt"}
AIM = ROW | {"value": 0.7, "aim": 0.85, "most": False, "met": False}


def result(*step_and_rows: Any) -> dict[str, Any]:
    (name, status), *rows = step_and_rows
    step = {"name": name, "status": status, "seconds": 1, "summary": "", "tail": [], "data": None}
    machine = {"device": "Vendor(R) X1", "date": "2026-01-02", "backend": "cuda"}
    return {"machine": machine, "commit": "abc", "small": False, "command": "ci/gpu",
            "steps": [step], "rows": rows}  # fmt: skip


def test_the_page_tells_what_was_reached_and_what_was_not(tmp_path: Path) -> None:
    absent = ROW | {"by": "peer", "skipped": "not installed"}
    numbers = ROW | {"seconds": 2e-5, "of_copy_bandwidth": 0.7}
    paths = report.write(result(("bench", "passed"), numbers, absent, AIM), tmp_path)
    assert [path.name for path in paths] == [
        "2026-01-02-cuda-vendor-x1.json", "2026-01-02-cuda-vendor-x1.md",
    ]  # fmt: skip
    page = paths[1].read_text()
    assert "| decode: batch 1 | 0.7 | at least 0.85 | **not met** |" in page
    assert "| batch 1 | kvrt | 20 us, of copy bandwidth 0.7 |" in page
    assert "| batch 1 | peer | not measured: not installed |" in page


def test_of_several_runs_the_later_one_counts_unless_it_left_the_step_out() -> None:
    first = result(("bench", "passed"), ROW | {"seconds": 1.0})
    again = result(("bench", "failed"), ROW | {"seconds": 2.0})
    nothing = result(("bench", "left out"))
    merged = report.merged([first, again, nothing])
    assert [step["status"] for step in merged["steps"]] == ["failed"]
    assert [row["seconds"] for row in merged["rows"]] == [2.0]


def test_what_must_be_there_is_not_carried_along() -> None:
    names = {wheels.name_of(text) for text in wheels.required()}
    assert {"scikit-build-core", "nanobind", "pytest", "pyrsistent", "huggingface-hub"} <= names
    assert not names & {"torch", "triton", "transformers", "cuda-bindings", "ruff"}


def test_only_what_builds_kvrt_may_be_missing_where_its_tests_run() -> None:
    for_building = {"scikit-build-core", "nanobind", "cmake", "ninja"}  # pip's isolated build's
    assert {wheels.name_of(text) for text in wheels.missing()} <= for_building


def test_every_benchmark_that_a_step_names_is_there() -> None:
    from tests.bench.gpu import __main__ as bench

    text = Path(bench.__file__).read_text()
    named = [name.removeprefix("bench-") for name in steps.step_names("cuda") if "bench" in name]
    assert named
    assert all(f'"{name}": lambda' in text for name in named)


def test_every_part_of_the_conformance_kit_is_in_a_step() -> None:
    run_by_a_step = [part for step in ALL for part in step.command if part.startswith(steps.KIT)]
    parts = [path.stem for path in Path(kvrt.testing.suite.__file__).parent.glob("test_*.py")]
    assert sorted(run_by_a_step) == sorted(f"kvrt.testing.suite.{part}" for part in parts)


def test_a_run_of_570_seconds_has_room_for_all_of_the_kit_on_a_gpu_that_has_compiled_nothing() -> (
    None
):
    last = max(i for i, step in enumerate(ALL) if "kit" in step.name)
    assert sum(step.seconds for step in ALL[: last + 1]) <= 570
