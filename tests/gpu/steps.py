"""What a run consists of: each step one command, so that one that fails or hangs stops no other."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.gpu.wheels import ROOT

BUILD = ROOT / "build"
VENV = BUILD / "gpu-venv"
PYTHON = VENV / "bin" / "python"
ROWS = BUILD / "gpu-rows.jsonl"
MACHINE = BUILD / "gpu-machine.json"
VENDORS = ("cuda", "rocm")
PYTEST = ("-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider", "-p", "pytest_timeout",
          "-p", "pytest_benchmark.plugin", "-p", "kvrt.testing.plugin")  # fmt: skip
"""Other plug-ins of the machine are left out, and their packages' warnings are no failures here."""

TESTS = "tests/gpu"
KIT = "kvrt.testing.suite.test_"
WORKERS = 8


@dataclass(frozen=True, slots=True)
class Step:
    """One command.

    Args:
        name: for ``--only``.
        command: its arguments.
        seconds: it takes about so long on a GPU that has compiled nothing yet.
        vital: nothing after it makes sense without it.
        json: it prints a JSON object, which is kept.
        optional: it is run only if it is named.
    """

    name: str
    command: tuple[str, ...]
    seconds: int
    vital: bool = False
    json: bool = False
    optional: bool = False


def steps(backend: str, *, small: bool, native: bool) -> list[Step]:
    """All steps for a backend, in order: what is most wanted comes first."""
    python = str(PYTHON)
    chosen = ("--kvrt-backend", backend)
    workers = () if small else ("-p", "xdist.plugin", "-n", str(WORKERS))

    def kit(*names: str) -> tuple[str, ...]:
        return (*(KIT + name for name in names), *chosen)

    def bench(name: str, seconds: int, *, optional: bool = False) -> Step:
        options = ("--backend", backend, "--rows", str(ROWS), *(("--small",) if small else ()))
        command = (python, "-m", "tests.bench.gpu", *options, name)
        return Step(f"bench-{name}", command, seconds, optional=optional)

    doctor = (python, "-m", "kvrt_cli", "doctor", "--json")
    machine = (python, "-m", "tests.bench.gpu", "--backend", backend, "--rows", str(MACHINE))
    driver = (python, "-m", "tests.emulator.contract", backend, "--library", "real")
    vendor = backend in VENDORS
    return [
        Step("install", install_command(native=native), 120 if native else 40, vital=True),
        Step("machine", (*machine, "machine"), 20),
        *([Step("driver", driver, 20, json=True)] if vendor else []),
        Step("doctor", doctor, 40, json=True),
        Step(
            "kit-memory",
            (python, *PYTEST, "--pyargs",
             *kit("memory", "copier", "errors", "lifecycle", "probe", "operators", "collectives")),
            60,
        ),
        Step(
            "kit-layers",
            (python, *PYTEST, *workers, "--pyargs",
             *kit("branches", "experts", "latent", "low_rank", "recurrence")),
            60,
        ),
        Step(
            "kit-kernels",
            (python, *PYTEST, *workers, "--pyargs",
             *kit("attention", "batches", "dense", "packed", "graphs")),
            150,
        ),
        Step(
            "kit-seen",
            (python, *PYTEST, *workers, "--pyargs", *kit("seen", "trees", "values")),
            90,
        ),
        Step(
            "recorded",
            (python, *PYTEST, f"{TESTS}/test_recorded.py", "-m", "extra", *chosen),
            60,
        ),
        Step("tests", (python, *PYTEST, TESTS, "-m", "extra", *chosen), 120),
        Step("doctor-again", doctor, 20, json=True),
        bench("memory", 20),
        bench("flashinfer", 300, optional=True),
        bench("decode", 90),
        bench("prefill", 40),
        bench("codes", 40),
        bench("products", 60),
        bench("one-stream", 80),
        bench("step", 30),
        bench("many", 90),
    ]  # fmt: skip


def install_command(*, native: bool) -> tuple[str, ...]:
    """Runs before there is a virtual environment, by `tests.gpu.install`."""
    return (sys.executable, "-m", "tests.gpu.install", *(() if native else ("--no-native",)))


def environment() -> dict[str, str]:
    """Variables of all steps. What is compiled stays under ``build``, and may be carried along."""
    return {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONUNBUFFERED": "1",
        "TRITON_CACHE_DIR": str(BUILD / "gpu-triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(BUILD / "gpu-inductor"),
        "FLASHINFER_WORKSPACE_BASE": str(BUILD / "gpu-flashinfer"),
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
        **_toolkit(),
    }


def _toolkit() -> dict[str, str]:
    """Where FlashInfer's build finds CUDA's compiler, and a libcuda.so to link with."""
    compiler = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(compiler).exists():
        return {}
    home = Path(compiler).resolve().parents[1]
    stubs = [str(home / "lib64" / "stubs"), *filter(None, [os.environ.get("LIBRARY_PATH")])]
    return {"CUDA_HOME": str(home), "LIBRARY_PATH": os.pathsep.join(stubs)} | {
        name: os.environ[name] for name in ("CUDA_HOME",) if name in os.environ
    }


def step_names(backend: str) -> list[str]:
    return [step.name for step in steps(backend, small=False, native=True)]


def reset() -> None:
    """Forget an earlier run's results."""
    for path in (ROWS, MACHINE):
        Path(path).unlink(missing_ok=True)
