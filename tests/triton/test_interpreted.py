"""The kernels in Triton's interpreter, which is chosen when Triton is imported: so in a process.

`interpreted/` has the tests. The conformance kit's attention and dense parts take minutes there;
`ci/kernels` runs them. Each process takes one core, so two run at a time.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.temporary import own_folder

HERE = Path(__file__).parent
PARTS = (
    "attention", "around", "experts", "matrices", "operators", "recurrence", "steps", "values",
)  # fmt: skip
GUARDED = ((129, 0, 0), (640, 0, 0), (257, 20, 0), (640, 20, 3), (640, 20, 130))
"""Lengths of a context, windows, and sinks."""

LAYERS = ("products", "experts", "recurrence")

Done = subprocess.CompletedProcess[str]


def interpreted(*arguments: str) -> Done:
    """Run Python with the interpreter chosen and its make-believe device importable."""
    extra = [str(HERE / "plugin"), str(HERE.parent / "plugins"), str(HERE.parents[1])]
    path = os.pathsep.join([*extra, os.environ.get("PYTHONPATH", "")])
    chosen = {"TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with own_folder() as own:
        return subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, **chosen, **own},
            capture_output=True,
            text=True,
            timeout=280,
        )


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[object, Future[Done]]]:
    """All of them, begun."""
    guarded = str(HERE / "guarded.py")
    asked: dict[object, tuple[str, ...]] = {
        part: ("-m", "pytest", "-q", str(HERE / "interpreted" / f"test_{part}.py"))
        for part in PARTS
    }
    asked |= {case: (guarded, *map(str, case)) for case in GUARDED}
    asked |= {("guarded", what): (guarded, what) for what in LAYERS}
    asked["too few pages"] = (guarded, "129", "0", "0", "too-few-pages")
    pool = ThreadPoolExecutor(2)
    yield {name: pool.submit(interpreted, *arguments) for name, arguments in asked.items()}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("part", PARTS)
def test_in_the_interpreter_the_kernels_agree_with_plain_arithmetic(
    part: str, runs: dict[object, Future[Done]]
) -> None:
    done = runs[part].result()
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "failed" not in done.stdout


@pytest.mark.parametrize("case", GUARDED, ids=str)
def test_the_kernels_touch_nothing_but_their_own_tokens(
    case: tuple[int, int, int], runs: dict[object, Future[Done]]
) -> None:
    """All else is not mapped: other pages, slots beyond the context, or before the window."""
    done = runs[case].result()
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("what", LAYERS)
def test_layers_touch_nothing_but_what_they_are_given(
    what: str, runs: dict[object, Future[Done]]
) -> None:
    """Behind weights, activations and results nothing is mapped, nor are pages that none needs."""
    done = runs["guarded", what].result()
    assert done.returncode == 0, done.stderr


def test_a_token_too_many_would_be_noticed(runs: dict[object, Future[Done]]) -> None:
    """The test above can fail: with a page that is used but not mapped, the process dies."""
    done = runs["too few pages"].result()
    assert done.returncode == -signal.SIGSEGV, done.stderr
