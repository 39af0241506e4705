"""The kernels touch nothing beyond a sequence's tokens: the rest may not even be mapped."""

import ctypes.util
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

GUARDED = Path(__file__).with_name("guarded.py")
CASES = ((128 * 7 + 1, 0), (128 * 3 - 1, 0), (1000, 300))
"""Lengths, and windows."""


def run(length: int, window: int, *, change: str = "") -> int:
    """The exit status of guarded.py, optionally with one line of it changed."""
    code = GUARDED.read_text()
    if change:
        old, new = change.split(" -> ")
        assert old in code
        code = code.replace(old, new)
    command = [sys.executable, "-c", code, str(length), str(window)]
    return subprocess.run(command, check=False, timeout=60).returncode


@pytest.fixture(scope="module")
def ended():
    """The exit status of each case. A process takes one core, so two run at a time."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(CASES, pool.map(lambda case: run(*case), CASES), strict=True))


@pytest.mark.promise("P5")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_unmapped_pages_slots_and_table_entries_are_never_touched(case, ended):
    assert ended[case] == 0


def test_the_guards_are_real():
    one_token_more = "context_len=torch.tensor([length] -> context_len=torch.tensor([length + 200]"
    assert run(1000, 0, change=one_token_more) == -signal.SIGSEGV


def test_working_memory_is_as_large_as_each_sequence_needs():
    """Few rows are laid out otherwise than many, and may take more: both meet in one batch."""
    checking = ctypes.util.find_library("c_malloc_debug")
    if checking is None:
        pytest.skip("the C library has no malloc that checks")
    code = Path(__file__).with_name("scratch.py").read_text()
    environment = os.environ | {"LD_PRELOAD": checking, "MALLOC_CHECK_": "3"}
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, timeout=120, env=environment, capture_output=True
    )
    assert ended.returncode == 0, ended.stderr.decode()[-2000:]
