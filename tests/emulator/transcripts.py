"""What ``kvrt doctor`` prints where: writes docs/doctor.md.

python -m tests.emulator.transcripts > docs/doctor.md
"""

import datetime
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

HEAD = """# What `kvrt doctor` says

Written by `python -m tests.emulator.transcripts` on {date}, on a machine without a GPU. The GPUs
are emulated drivers over host memory (`tests/emulator`) with the vendors' own Python bindings on
them, so sizes and times are those of that host; only what is said, and when, is of interest here.
What a real one says comes first, from the results of `ci/gpu`.

| mark | meaning |
| --- | --- |
| `[ok]` | works |
| `[!]` | works, and is worth mending |
| `[x]` | is broken; the exit status is then 1 |
| `[-]` | is not there, cannot be checked, or is only to be known |
"""


@dataclass(frozen=True, slots=True)
class Transcript:
    """One section.

    Args:
        title: when one sees this.
        emulator: arguments of ``python -m tests.emulator``; empty: the machine as it is.
        only: the groups shown.
    """

    title: str
    emulator: tuple[str, ...]
    only: str

    @property
    def command(self) -> list[str]:
        doctor = ["doctor", "--color", "never", "--only", self.only]
        if not self.emulator:
            return ["-m", "kvrt_cli", *doctor]
        return ["-m", "tests.emulator", *self.emulator, "-m", "kvrt_cli", *doctor]


TRANSCRIPTS = (
    Transcript("A machine without a GPU", (), "backends"),
    Transcript("An NVIDIA GPU (emulated)", ("cuda",), "cuda"),
    Transcript("Two of them (emulated)", ("cuda", "--set", "devices=2"), "cuda"),
    Transcript("An AMD GPU (emulated)", ("rocm",), "rocm"),
    Transcript(
        "ROCm that does not give memory back (emulated)", ("rocm", "--set", "keeps_memory=1"),
        "rocm",
    ),
    Transcript("A GPU, and torch for CPUs only", ("cuda", "--unchanged"), "backends"),
    Transcript("An old driver", ("cuda", "--set", "version=11080"), "backends"),
    Transcript("A driver that finds no device", ("rocm", "--set", "devices=0"), "backends"),
)  # fmt: skip


def recorded() -> str:
    """What the newest results of `ci/gpu` in docs/benchmarks have of a real device."""
    newest = max((ROOT / "docs/benchmarks").glob("*-cuda-*.json"))
    result = json.loads(newest.read_text())
    (report,) = (step["data"] for step in result["steps"] if step["name"] == "doctor")
    shown = []
    for group in ("backends", "cuda:0"):
        shown += ["", group]
        for check in report["checks"]:
            if check["group"] == group:
                shown.append(f"  {'[' + check['mark'] + ']':4} {check['text']}")
    title = f"{result['machine']['device']}, {result['machine']['date']}"
    lines = "\n".join(["$ kvrt doctor", *shown, "", report["summary"]])
    return f"## {title}\n\n```\n{lines}\n```\n"


def main() -> None:
    parts = [HEAD.format(date=datetime.date.today()), recorded()]
    for transcript in TRANSCRIPTS:
        result = subprocess.run(
            [sys.executable, *transcript.command],
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )
        command = " ".join(["python", *transcript.command]).replace(" --color never", "")
        shown = "\n".join(line.rstrip() for line in result.stdout.strip().splitlines())
        parts.append(f"## {transcript.title}\n\n```\n$ {command}\n\n{shown}\n```\n")
    print("\n".join(parts), end="")


if __name__ == "__main__":
    main()
