"""The conformance kit passes for correct devices, and never for none.

On the devices that are here, `make test` runs it itself.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

Kit = Callable[..., pytest.RunResult]

CHAOS = """
from dataclasses import replace
from kvrt import registry
from kvrt.testing.chaos import Chaos

null = registry.load("null")

class ChaosBackend:
    spi = 2
    probe = null.probe

    def __init__(self, name):
        self.name = name

    def open(self, index=0, options=None):
        device = Chaos(null.open(index), seed=7, copies=self.name)
        device.inner.info = replace(device.inner.info, backend=self.name)
        return device

early, late, mixed = map(ChaosBackend, ("early", "late", "mixed"))
"""

PACKS = """
from kvrt import registry
from kvrt.testing.packing import PackingBackend

packs = PackingBackend("packs", registry.load("null"))
"""

EXACT = """
from dataclasses import replace
from kvrt import registry
from kvrt.spi import DeviceOptions

class Exact:
    name, spi = "exact", 2

    def probe(self):
        return registry.load("cpu").probe()

    def open(self, index=0, options=DeviceOptions()):
        device = registry.load("cpu").open(index, replace(options, exact=True))
        device.info = replace(device.info, backend=self.name)
        return device

exact = Exact()
"""

EXPLODES = """
class Explodes:
    name, spi = "explodes", 2

    def open(self, index):
        raise ZeroDivisionError("boom")

explodes = Explodes()
"""


@pytest.mark.promise("P37")
@pytest.mark.parametrize("copies", ["early", "late", "mixed"])
def test_it_passes_for_a_device_that_delays_within_the_rules(
    copies: str, install: Callable[..., None], kit: Kit
) -> None:
    install(CHAOS, ["early", "late", "mixed"])
    parts = ("probe", "memory", "copier", "lifecycle", "errors")
    result = kit("--kvrt-backend", copies, parts=parts)
    assert result.ret == pytest.ExitCode.OK


@pytest.mark.promise("P37")
def test_it_passes_for_a_device_that_packs_weights_in_every_way(
    install: Callable[..., None], kit: Kit
) -> None:
    install(PACKS, ["packs"])
    result = kit("--kvrt-backend", "packs", parts=("packed",))
    assert result.ret == pytest.ExitCode.OK
    assert result.parseoutcomes()["passed"] > 100


@pytest.mark.promise("P37")
def test_it_passes_for_the_processor_with_activations_as_they_are(
    install: Callable[..., None], kit: Kit
) -> None:
    install(EXACT, ["exact"])
    result = kit("--kvrt-backend", "exact", parts=("packed", "low_rank"))
    assert result.ret == pytest.ExitCode.OK
    assert result.parseoutcomes()["passed"] > 100


def test_it_says_what_the_device_left_out(kit: Kit) -> None:
    result = kit("--kvrt-backend", "null", parts=("probe",))
    result.stdout.fnmatch_lines(
        [
            "*kvrt backend null*",
            "device 0: make-believe device (none)",
            "capabilities not declared: ASYNC_COPIES, BATCH_INVARIANT, RAGGED_GRAPHS, TREES",
            "extensions not offered: BranchOps, Collectives, DenseOps, ExpertOps, GraphCapture,"
            " LatentOps, LowRankOps, Measurable, PackedMatrices, Recurrence",
        ]
    )


def test_without_a_backend_it_is_a_usage_error(kit: Kit) -> None:
    result = kit()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*needs --kvrt-backend NAME*cpu*"])


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("nul", "*there is no backend 'nul'; did you mean 'null'?*"),
        ("cuda", "*--kvrt-backend cuda: device 0 cannot be opened: *"),
        ("explodes", "*device 0 cannot be opened: boom*"),
    ],
)
def test_a_backend_that_cannot_run_is_an_error_and_not_an_empty_run(
    backend: str, message: str, install: Callable[..., None], kit: Kit
) -> None:
    install(EXPLODES, ["explodes"])
    result = kit("--kvrt-backend", backend)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])
    result.stdout.no_fnmatch_line("*passed*")


def test_a_device_that_does_not_exist_is_an_error(kit: Kit) -> None:
    result = kit("--kvrt-backend", "null", "--kvrt-device", "3")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*device 3 cannot be opened*"])


def test_the_documented_command_works_anywhere(tmp_path: Path) -> None:
    """In another folder, with nothing but the installed plug-in."""
    plugins = Path(__file__).parents[1] / "plugins"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--pyargs"]
    command += ["kvrt.testing.suite.test_errors", "--kvrt-backend", "null"]
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(plugins)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "kvrt backend null" in result.stdout
