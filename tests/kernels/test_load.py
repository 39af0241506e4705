"""Finding the compiled module, and choosing an instruction set."""

import platform
import re
import subprocess
import sys
from pathlib import Path

import kvrt_kernels
import pytest
import torch
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
from pathlib import Path
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_the_peak_of_each_type_of_weights_is_plausible(isa, dtype):
    assert 1e8 < limits.peak(dtype, passes=2) < 1e15


def test_the_environment_chooses_an_instruction_set(monkeypatch):
    show = "import kvrt_kernels; print(kvrt_kernels.isa())"
    monkeypatch.setenv("KVRT_ISA", "")
    assert python(show).strip() == kvrt_kernels.isas()[0]
    monkeypatch.setenv("KVRT_ISA", kvrt_kernels.isas()[-1])
    assert python(show).strip() == kvrt_kernels.isas()[-1]


def test_a_bad_choice_of_the_environment_is_named_with_those_there_are(monkeypatch):
    monkeypatch.setenv("KVRT_ISA", "sparc")
    code = """
import kvrt_kernels
from kvrt.errors import ConfigError
try:
    kvrt_kernels.isa()
except ConfigError as error:
    print(error, "|", error.fix)
"""
    message, fix = python(code).strip().split(" | ")
    assert message == "KVRT_ISA is 'sparc', which does not run on this machine"
    assert all(name in fix for name in kvrt_kernels.isas())


def test_every_build_runs_on_this_processor():
    """The others' tests all pass without them; this says which were never seen to run."""
    root = Path(__file__).parents[2]
    family = "neon" if platform.machine() == "aarch64" else "x86-64"
    built = re.findall(rf"kvrt_isa\(({family}[^\s)]*)", (root / "CMakeLists.txt").read_text())
    assert set(kvrt_kernels.isas()) <= set(built)
    if missing := set(built) - set(kvrt_kernels.isas()):
        pytest.skip(f"never ran here: {', '.join(sorted(missing))}")
