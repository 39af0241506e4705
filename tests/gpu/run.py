"""Runs steps one after the other, within a budget of time, and writes down what came of them."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.gpu import report
from tests.gpu.steps import MACHINE, ROWS, Step, environment, reset
from tests.gpu.wheels import ROOT, commit

LONGEST_S = 1800
PATIENCE = 3
"""A step may take so many times what it is expected to: one that hangs leaves the others time."""

SHOWN = {"passed": 2, "failed": 40, "timed out": 40}
"""Lines of a step's output that are printed; the log has all."""

KEPT = 15


@dataclass(slots=True)
class Outcome:
    """What came of a step.

    Args:
        status: passed, failed, timed out, or left out.
        summary: its last line, or why it was left out.
    """

    name: str
    status: str
    seconds: float = 0.0
    summary: str = ""
    tail: list[str] = field(default_factory=list)
    data: Any = None


def run(chosen: list[Step], backend: str, out: Path, budget: float | None, *, small: bool) -> int:
    """Run them; 1 if one failed, else 0. Results are written after each, so none is ever lost."""
    reset()
    out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    outcomes: list[Outcome] = []
    log = out / f"{backend}.log"
    log.write_text("")
    stopped = ""
    for step in chosen:
        left = None if budget is None else budget - (time.monotonic() - begin)
        if stopped or (left is not None and step.seconds > left):
            why = stopped or f"needs about {step.seconds} s; {left:.0f} s are left"
            outcomes.append(Outcome(step.name, "left out", summary=why))
            continue
        print(f"=== {step.name}", flush=True)
        before = len(rows())
        limit = LONGEST_S if left is None else min(left, PATIENCE * step.seconds)
        outcome = execute(step, limit, log)
        if measured := rows()[before:]:
            outcome.summary = of_rows(measured)
        outcomes.append(outcome)
        if step.vital and outcome.status != "passed":
            stopped = f"{step.name} {outcome.status}"
        if MACHINE.exists():  # its name is the results' name
            write(outcomes, backend, out, small=small)
    paths = write(outcomes, backend, out, small=small)
    print("\n" + report.steps_table([asdict(outcome) for outcome in outcomes]))
    print(f"\n{(time.monotonic() - begin):.0f} s; {', '.join(map(str, paths))}, {log}")
    return int(any(outcome.status in ("failed", "timed out") for outcome in outcomes))


def execute(step: Step, limit: float, log: Path) -> Outcome:
    """Run one command and everything it starts, for at most `limit` seconds."""
    begin = time.monotonic()
    process = subprocess.Popen(
        step.command, cwd=ROOT, env={**os.environ, **environment()}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True,
    )  # fmt: skip
    lines: deque[str] = deque(maxlen=100_000)

    def read() -> None:
        assert process.stdout is not None
        with process.stdout, log.open("a") as file:
            file.write(f"=== {step.name}: {' '.join(step.command)}\n")
            for line in process.stdout:
                file.write(line)
                file.flush()
                lines.append(line.rstrip())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        status = "passed" if process.wait(limit) == 0 else "failed"
    except subprocess.TimeoutExpired:
        status = "timed out"
    end_group(process.pid)  # also what a step that ended has left behind
    process.wait()
    reader.join()
    text = [line for line in lines if line.strip()]
    data = parsed("\n".join(lines)) if step.json else None
    if step.json and data is None and status == "passed":
        status = "failed"
    shown = text[-SHOWN[status] :] if data is None or status != "passed" else []
    print("\n".join(shown), flush=True)
    seconds = time.monotonic() - begin
    print(f"--- {step.name} {status}, {seconds:.0f} s", flush=True)
    tail = text[-KEPT:] if status != "passed" else []
    return Outcome(step.name, status, round(seconds, 1), summary(text, data), tail, data)


def end_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def parsed(text: str) -> Any:
    """The JSON object in an output that may have warnings before it; None if there is none."""
    for start in re.finditer(r"^\{", text, re.MULTILINE):
        try:
            return json.JSONDecoder().raw_decode(text[start.start() :])[0]
        except json.JSONDecodeError:
            continue
    return None


def summary(lines: list[str], data: Any) -> str:
    """A line that tells most: pytest's own, or a JSON object's, or the last."""
    if isinstance(data, dict):
        if "differences" in data:
            return f"{len(data['answers'])} calls, {len(data['differences'])} differences"
        return str(data.get("summary", ""))
    for line in reversed(lines):
        if re.search(r"\d+ (passed|failed|error|skipped)", line):
            return line.strip("= ")
    return lines[-1][:200] if lines else ""


def rows() -> list[dict[str, Any]]:
    """What was measured so far."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def of_rows(measured: list[dict[str, Any]]) -> str:
    aims = [row["met"] for row in measured if "aim" in row]
    absent = sum("skipped" in row for row in measured)
    return f"{len(measured) - absent} results, {sum(aims)} of {len(aims)} aims met" + (
        f", {absent} not measured" if absent else ""
    )


def write(outcomes: list[Outcome], backend: str, out: Path, *, small: bool) -> list[Path]:
    """The results so far, as JSON and as a page."""
    machine = {"backend": backend, "device": "unknown", "date": time.strftime("%Y-%m-%d")}
    if MACHINE.exists():
        machine |= json.loads(MACHINE.read_text())
    result = {
        "machine": machine,
        "commit": commit(),
        "small": small,
        "command": " ".join(["ci/gpu", *sys.argv[1:]]),
        "steps": [asdict(outcome) for outcome in outcomes],
        "rows": rows(),
    }
    return report.write(result, out)
