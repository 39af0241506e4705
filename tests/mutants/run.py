"""Runs tests with one line of the code changed, which is never written to the tree."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
SOURCES = ("", "backends/cpu", "backends/cuda", "backends/rocm", "kernels", "cli")
HOOK = Path(__file__).parent / "hook"


class LineMutant(NamedTuple):
    """One text of one module changed.

    Args:
        module: by its dotted name.
        old: occurs in it once.
        new: what stands there instead.
        tests: what should notice: files, or single tests, under ``tests``.
    """

    module: str
    old: str
    new: str
    tests: str

    @property
    def path(self) -> Path:
        """Of the module's source."""
        stem = self.module.replace(".", "/")
        found = [
            path
            for folder in SOURCES
            for path in (ROOT / folder / f"{stem}.py", ROOT / folder / stem / "__init__.py")
            if path.exists()
        ]
        assert len(found) == 1, f"{self.module}: {found}"
        return found[0]


def run_tests(tests: str, mutant: LineMutant | None, seen: Path) -> bool:
    """Whether the tests pass. `seen` is made when the changed module is imported."""
    env = dict(os.environ)
    if mutant is not None:
        change = {"module": mutant.module, "old": mutant.old, "new": mutant.new, "seen": str(seen)}
        env["LINE_MUTANT"] = json.dumps(change)
        env["PYTHONPATH"] = str(HOOK)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *_paths(tests)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode not in (4, 5), f"no such test: {tests}\n{done.stdout[-4000:]}"
    return done.returncode == 0


def _paths(tests: str) -> Sequence[str]:
    return [f"tests/{test}" for test in tests.split()]
