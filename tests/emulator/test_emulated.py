"""The CUDA and ROCm backends, with the vendors' own bindings, on emulated drivers.

An emulated driver takes the vendor's place in its whole process, so each of these runs has one.
It takes one core: when a test asks for one vendor's run, the other vendor's begins beside it.
"""

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.emulator import library
from tests.temporary import own_folder

ROOT = Path(__file__).parents[2]
VENDORS = ("cuda", "rocm")
PARTS = ("probe", "memory", "copier", "lifecycle", "errors")
SEEN = ("seen", "values")
BINDINGS = {
    "cuda-bindings==12.9.4": "cuda",  # pinned by torch's builds for CUDA 12.8
    "cuda-bindings==13.0.3": "cuda",  # and for CUDA 13.0
    "hip-python==7.2.2.562.43": "rocm",
}
"""Older generations of the bindings: 12 and 67 MB, so not for everyone's run."""

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(autouse=True)
def _bindings(vendor: str) -> None:
    if reason := library.unsupported(vendor):
        pytest.skip(reason)


def python(*arguments: str, **environ: str) -> str:
    """``python ARGUMENTS``: what it prints. Fails the test if it fails."""
    with own_folder() as own:
        result = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **own, **environ},
            capture_output=True,
            text=True,
            check=False,
        )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-20_000:]
    return output


@cache
def begun(
    vendors: tuple[str, ...], arguments: tuple[str, ...], interpret: bool
) -> dict[str, Future[str]]:
    """The runs of those vendors, side by side."""
    environ = {"TRITON_INTERPRET": "1"} if interpret else {}
    pool = ThreadPoolExecutor(len(vendors))
    runs = {
        vendor: pool.submit(
            python,
            *("-m", "tests.emulator", vendor),
            *(argument.format(vendor=vendor) for argument in arguments),
            **environ,
        )
        for vendor in vendors
    }
    pool.shutdown(wait=False)
    return runs


def emulated(vendor: str, *arguments: str, alone: bool = False, interpret: bool = False) -> str:
    """``python -m tests.emulator VENDOR ARGUMENTS``: what it prints. Fails the test if it fails.

    Args:
        vendor: whose driver.
        arguments: in which ``{vendor}`` stands for it.
        alone: the run is for this vendor only, or must have the machine for itself.
        interpret: Triton's kernels run in its interpreter.
    """
    here = tuple(each for each in VENDORS if not library.unsupported(each))
    return begun((vendor,) if alone else here, arguments, interpret)[vendor].result()


def kit(
    *arguments: str,
    vendor: str,
    parts: tuple[str, ...] = PARTS,
    alone: bool = False,
    interpret: bool = False,
) -> str:
    modules = [f"kvrt.testing.suite.test_{part}" for part in parts]
    run = ("-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--pyargs", *modules)
    chosen = ("--kvrt-backend", "{vendor}")
    return emulated(vendor, *arguments, *run, *chosen, alone=alone, interpret=interpret)


def inside(*arguments: str, vendor: str, options: tuple[str, ...] = (), alone: bool = False) -> str:
    run = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/emulator/inside", *options)
    return emulated(vendor, *arguments, *run, alone=alone)


@pytest.mark.promise("P37")
@pytest.mark.parametrize("vendor", VENDORS)
def test_the_conformance_kit_passes(vendor: str) -> None:
    assert f"kvrt backend {vendor}" in kit(vendor=vendor)


@pytest.mark.promise("P37")
@pytest.mark.parametrize("vendor", VENDORS)
def test_the_conformance_kit_passes_when_work_is_put_off(vendor: str) -> None:
    """Every copy runs as late as its ticket allows."""
    kit("--set", "deferred=1", vendor=vendor, parts=("copier", "lifecycle"))


@pytest.mark.promise("P37")
@pytest.mark.parametrize("vendor", ["rocm"])
def test_the_conformance_kit_passes_with_rocms_own_ways(vendor: str) -> None:
    settings = ("--set", "keeps_memory=1", "--set", "silent_map=1")
    kit(*settings, vendor=vendor, parts=("memory", "lifecycle", "errors"), alone=True)


@pytest.mark.promise("P37")
@pytest.mark.parametrize("vendor", VENDORS)
def test_the_conformance_kits_sinks_whole_contexts_and_widths_of_values_pass(vendor: str) -> None:
    assert "does not declare VALUE_WIDTHS" not in kit(vendor=vendor, parts=SEEN)


@pytest.mark.parametrize("vendor", VENDORS)
def test_inside(vendor: str) -> None:
    """All of `tests/emulator/inside`."""
    inside(vendor=vendor)


@pytest.mark.parametrize("vendor", VENDORS)
def test_core_engine_memory_and_the_gpus_own_kernels_give_the_cpus_tokens(vendor: str) -> None:
    tests = "tests/emulator/inside/test_interpreted.py"
    run = ("-m", "pytest", "-q", "-p", "no:cacheprovider", tests)
    output = emulated(vendor, "--kernels", "interpreter", *run, interpret=True)
    assert "5 passed" in output


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_emulated_driver_keeps_the_contract(vendor: str) -> None:
    command = [sys.executable, "-m", "tests.emulator.contract", vendor, "--library", "emulated"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.stdout, result.stderr
    report = json.loads(result.stdout)
    assert report["differences"] == {}
    assert len(report["answers"]) >= 30
    assert result.returncode == 0


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_memory_benchmark_runs(vendor: str) -> None:
    benchmark = ("-m", "tests.bench.gpu_memory", "--backend", vendor)
    report = json.loads(emulated(vendor, *benchmark, alone=True))
    assert 0 < report["pooled_chunk_us"] < report["new_chunk_us"]
    assert report["backend_us"].keys() == {"create", "map", "unmap", "destroy"}


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_bindings_that_are_tested_are_those_that_may_be_installed(vendor: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = map(Requirement, project["optional-dependencies"][vendor])
    wanted = {each.name: each.specifier for each in asked}
    for tested in map(Requirement, (name for name, of in BINDINGS.items() if of == vendor)):
        (pin,) = tested.specifier
        assert wanted[tested.name].contains(pin.version), tested


# --- not for everyone's run ----------------------------------------------------------------------


@pytest.fixture(scope="session")
def older(request: pytest.FixtureRequest) -> Path:
    """A folder with an older generation of a binding; installed there once."""
    folder = Path(tempfile.gettempdir()) / f"kvrt-binding-{request.param}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            subprocess.run([*install, "--target", f"{draft}/all", request.param], check=True)
            Path(draft, "all").rename(folder)
    return folder


@pytest.mark.extra
@pytest.mark.parametrize(
    ("vendor", "older"),
    [(vendor, binding) for binding, vendor in BINDINGS.items()],
    indirect=["older"],
)
def test_older_bindings(vendor: str, older: Path) -> None:
    output = kit("--binding", str(older), vendor=vendor, alone=True)
    assert "passed" in output
    inside("--binding", str(older), vendor=vendor, alone=True)


@pytest.mark.extra
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("vendor", VENDORS)
def test_the_gpus_own_kernels_pass_the_same_parts_of_the_kit(vendor: str) -> None:
    kit("--kernels", "interpreter", vendor=vendor, parts=SEEN, interpret=True)


@pytest.mark.extra
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("vendor", VENDORS)
def test_every_single_call_of_a_run_may_fail(vendor: str) -> None:
    inside(vendor=vendor, options=("-m", "extra"))
