"""`kvrt doctor` on emulated GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.emulator import library
from tests.emulator.transcripts import TRANSCRIPTS

ROOT = Path(__file__).parents[2]
NO_GPU = {"cuda": "no NVIDIA GPU here", "rocm": "no AMD GPU here"}


def doctor(vendor: str, *options: str) -> dict[tuple[str, str], dict[str, Any]]:
    """What doctor finds on an emulated GPU, by group and name."""
    if reason := library.unsupported(vendor):
        pytest.skip(reason)
    emulated = ["-m", "tests.emulator", vendor, *options]
    command = [sys.executable, *emulated, "-m", "kvrt_cli", "doctor", "--json", "--only", vendor]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout, result.stderr
    report = json.loads(result.stdout)
    return {(check["group"], check["name"]): check for check in report["checks"]}


@pytest.mark.parametrize("vendor", NO_GPU)
def test_each_part_of_an_emulated_gpu_is_proved(vendor: str) -> None:
    found = doctor(vendor)
    assert not [check for check in found.values() if check["mark"] == "x"]
    assert found["backends", vendor]["mark"] == "ok"
    where = f"{vendor}:0"
    for name in ("device", "memory", "attention.float32", "attention.bfloat16", "latency"):
        assert found[where, name]["mark"] == "ok", found[where, name]
    memory = found[where, "memory"]["data"]
    assert memory["taken_bytes"] >= memory["written_bytes"] // 2
    assert memory["kept_bytes"] <= memory["written_bytes"] // 4
    assert memory["chunks_left"] == 0
    notes = [check["text"] for (group, name), check in found.items() if name.startswith("note")]
    assert ["never run on AMD hardware" in note for note in notes] == [True] * (vendor == "rocm")


def test_rocm_that_keeps_memory_is_worth_mending() -> None:
    found = doctor("rocm", "--set", "keeps_memory=1")
    note = found["rocm:0", "note.1"]
    assert note["mark"] == "!"
    assert "shrinks only when it is closed" in note["text"]
    assert note["fix"] == "update ROCm"


@pytest.mark.parametrize("vendor", NO_GPU)
def test_a_torch_for_cpus_is_named_and_the_backend_is_not_used(vendor: str) -> None:
    found = doctor(vendor, "--unchanged")
    check = found["backends", vendor]
    assert check["mark"] == "-"
    assert "1 device" in check["text"]
    assert "this torch is built for CPUs only" in check["text"]
    assert check["fix"].startswith("install torch's")
    assert not any(group.startswith(f"{vendor}:") for group, _ in found)


def test_the_transcripts_in_the_docs_are_of_these_commands() -> None:
    text = (ROOT / "docs/doctor.md").read_text()
    commands = [line for line in text.splitlines() if line.startswith("$ ")]
    wanted = [f"$ python {' '.join(t.command)}".replace(" --color never", "") for t in TRANSCRIPTS]
    assert commands == ["$ kvrt doctor", *wanted]  # the first on a real device, by `ci/gpu`
    assert "Traceback" not in text
