"""Tests for a process with TRITON_INTERPRET=1; `tests/triton/test_interpreted.py` starts it.

A program takes 20 to 30 ms in the interpreter, so what is launched here is small.
"""

import os
from pathlib import Path

import pytest

from kvrt.spi import Device

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_configure(config: pytest.Config) -> None:
    # The interpreter of Triton 3.6 does so, which numpy before 2.4 still allows.
    config.addinivalue_line("filterwarnings", "ignore:Conversion of an array with ndim")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return None if INTERPRETING else True


@pytest.fixture(scope="session")
def interpreted() -> Device:
    """The kernels in the interpreter."""
    from kvrt_interpreted import Interpreted

    return Interpreted()


@pytest.fixture(scope="session")
def device(interpreted: Device) -> Device:
    """The same, with every argument checked."""
    from kvrt.wrappers import Checked

    return Checked(interpreted)
