"""The package without Triton, and beside what does not use it."""

import subprocess
import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace

import kvrt_kernels
import pytest
from kvrt_kernels.triton import _require, require_triton

from kvrt.errors import BackendUnavailable


def pretend(monkeypatch: pytest.MonkeyPatch, triton: object) -> None:
    def find(name: str) -> ModuleType:
        if isinstance(triton, Exception):
            raise triton
        return triton  # type: ignore[return-value]

    monkeypatch.setattr(_require, "import_module", find)


def test_the_installed_triton_will_do() -> None:
    require_triton()
    assert import_module("triton").__version__


@pytest.mark.parametrize(
    ("triton", "message"),
    [
        (ModuleNotFoundError("No module named 'triton'", name="triton"), "not installed"),
        (ModuleNotFoundError("No module named 'numpy'", name="numpy"), "cannot be imported.*numpy"),
        (OSError("libstdc++.so.6: cannot open"), "cannot be imported.*libstdc"),
        (SimpleNamespace(__version__="3.5.1"), "3.5.1 is too old: 3.6"),
        (SimpleNamespace(__version__="2.1"), "2.1 is too old"),
    ],
)
def test_a_triton_that_is_missing_broken_or_old_is_named_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, triton: object, message: str
) -> None:
    pretend(monkeypatch, triton)
    with pytest.raises(BackendUnavailable, match=message) as raised:
        require_triton()
    assert "triton>=3.6" in raised.value.fix


@pytest.mark.parametrize("version", ["3.6.0", "3.6.0+git5d3dd21d", "3.10.0", "4.0"])
def test_newer_versions_and_vendor_builds_will_do(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    pretend(monkeypatch, SimpleNamespace(__version__=version))
    require_triton()


def test_nothing_loads_triton_before_its_classes_are_asked_for() -> None:
    """Not the package itself, and not the kernels for CPUs or a run on one."""
    code = (
        "import sys, kvrt, kvrt_cpu, kvrt_kernels.attention, kvrt_kernels.triton\n"
        "assert 'triton' not in sys.modules, 'loaded too early'\n"
        "kvrt_kernels.triton.TritonOps\n"
        "assert 'triton' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="TritonAtention"):
        _ = kvrt_kernels.triton.TritonAtention
