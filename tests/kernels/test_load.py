"""Finding the compiled module, and choosing an instruction set."""

import subprocess
import sys

import kvrt_kernels
import pytest
from kvrt_kernels import limits

from kvrt.errors import ConfigError


def python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_importing_the_package_loads_neither_torch_nor_triton():
    code = "import sys, kvrt_kernels; print([m for m in ('torch', 'triton') if m in sys.modules])"
    assert python(code).strip() == "[]"


def test_the_fastest_instruction_set_is_in_use_and_all_are_named():
    assert kvrt_kernels.native_available()
    assert kvrt_kernels.native_error() == ""
    assert kvrt_kernels.isa() == kvrt_kernels.isas()[0]


def test_an_unknown_instruction_set_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="'sparc' does not run") as caught:
        kvrt_kernels.set_isa("sparc")
    assert kvrt_kernels.isas()[-1] in caught.value.fix


def test_without_the_compiled_module_the_reason_is_told_and_the_reference_serves():
    code = """
import sys
sys.modules["kvrt_kernels._native"] = None
import kvrt_kernels, torch
from kvrt.errors import BackendUnavailable
from kvrt_kernels import linear, reference
assert not kvrt_kernels.native_available()
x, w = torch.ones(1, 2), torch.ones(3, 2)
assert reference.linear(x, w).tolist() == [[2.0, 2.0, 2.0]]
try:
    linear.linear(x, w)
except BackendUnavailable as error:
    print(error, "|", error.fix, "|", kvrt_kernels.native_error())
"""
    message, fix, reason = python(code).strip().split(" | ")
    assert message == f"the native CPU kernels do not load: {reason}"
    assert "_native" in reason
    assert "compiler" in fix


def test_the_machines_limits_are_plausible():
    found = limits.measure(nbytes=8 << 20, passes=2)
    assert 1e8 < found.read_bytes_per_s < 1e13
    assert 1e8 < found.flops_per_s < 1e14
