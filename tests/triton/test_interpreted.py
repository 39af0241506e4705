"""The kernels in Triton's interpreter, which is chosen when Triton is imported: so in a process.

`interpreted/` has the tests. The conformance kit's attention and fused parts take minutes there;
`ci/kernels` runs them.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def interpreted(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the interpreter chosen and its make-believe device importable."""
    extra = [str(HERE / "plugin"), str(HERE.parent / "plugins"), str(HERE.parents[1])]
    path = os.pathsep.join([*extra, os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.parametrize("part", ["attention", "operators", "steps"])
def test_in_the_interpreter_the_kernels_agree_with_plain_arithmetic(part: str) -> None:
    done = interpreted("-m", "pytest", "-q", str(HERE / "interpreted" / f"test_{part}.py"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "failed" not in done.stdout


@pytest.mark.parametrize(("length", "window"), [(129, 0), (640, 0), (257, 20)])
def test_the_kernels_touch_nothing_but_their_own_tokens(length: int, window: int) -> None:
    """Everything else is not mapped: other pages, slots beyond the context or before the window."""
    done = interpreted(str(HERE / "guarded.py"), str(length), str(window))
    assert done.returncode == 0, done.stderr


def test_a_token_too_many_would_be_noticed() -> None:
    """The test above can fail: with a page that is used but not mapped, the process dies."""
    done = interpreted(str(HERE / "guarded.py"), "129", "0", "too-few-pages")
    assert done.returncode == -signal.SIGSEGV, done.stderr
