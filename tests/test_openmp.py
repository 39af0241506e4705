"""OpenMP's waiting is set where nobody has set it."""

import os
import subprocess
import sys

from kvrt.openmp import WAITING, wait_briefly


def test_it_is_set_only_where_nobody_has_decided() -> None:
    empty: dict[str, str] = {}
    wait_briefly(empty)
    assert empty == WAITING
    passive = {"OMP_WAIT_POLICY": "passive"}
    wait_briefly(passive)
    assert passive == {"OMP_WAIT_POLICY": "passive"}


def test_gnu_openmp_takes_the_setting() -> None:
    """The runtime that torch brings prints what it has read."""
    code = "import os; from kvrt.openmp import wait_briefly; wait_briefly(); import torch"
    environ = {k: v for k, v in os.environ.items() if k not in WAITING}
    shown = subprocess.run(
        [sys.executable, "-c", code],
        env={**environ, "OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert "OMP_WAIT_POLICY = 'ACTIVE'" in shown
    assert "GOMP_SPINCOUNT = '2000'" in shown
