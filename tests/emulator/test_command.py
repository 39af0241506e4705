"""`kvrt run` on emulated GPUs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulator import library

ROOT = Path(__file__).parents[2]


def kvrt(vendor: str, *settings: str, run: tuple[str, ...]) -> "subprocess.CompletedProcess[str]":
    """``kvrt run`` on an emulated GPU."""
    if reason := library.unsupported(vendor):
        pytest.skip(reason)
    emulated = ["-m", "tests.emulator", vendor, *(f"--set={setting}" for setting in settings)]
    return subprocess.run(
        [sys.executable, *emulated, "-m", "kvrt_cli", "run", *run],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("vendor", "said"),
    [
        ("cuda", r"error: cu\w+\(.*\) failed with CUDA_ERROR_LAUNCH_FAILED"),
        ("rocm", r"error: hip\w+\(.*\) failed with hipErrorLaunchFailure"),
    ],
)
def test_a_device_that_is_lost_ends_the_command_with_its_error(vendor: str, said: str) -> None:
    ask = ("tiny", "Once upon a time", "-n", "200", "--backend", vendor, "--temperature", "0")
    result = kvrt(vendor, "lose_after=250", run=ask)
    assert result.returncode == 1, result.stderr
    assert result.stdout.strip(), "what was generated until then is there"
    assert re.search(said, result.stderr), result.stderr
    assert "fix: the device must be opened anew" in result.stderr
    assert "Traceback" not in result.stderr


def test_devices_are_listed_and_one_that_is_not_there_is_refused() -> None:
    listed = kvrt("cuda", "devices=2", run=("--list-devices",))
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["cuda:0", "cuda:1", "cpu:0"]
    refused = kvrt("cuda", "devices=2", run=("tiny", "x", "--backend", "cuda", "--device", "2"))
    assert refused.returncode == 4
    assert "there is no cuda device 2: there are 2" in refused.stderr
    assert "fix: use a device from 0 to 1" in refused.stderr


def test_a_backend_that_is_named_is_never_replaced_by_another() -> None:
    """Here the CUDA driver is emulated, and there is none of ROCm."""
    result = kvrt("cuda", run=("tiny", "x", "-n", "1", "--backend", "rocm"))
    assert result.returncode == 4
    assert result.stdout == ""
    assert "the rocm backend cannot be used: no AMD GPU here" in result.stderr
