"""The Python packages that a machine without a network needs, carried along as wheels.

What is large and bound to the device (torch, Triton, the vendors' bindings) must be there already.
"""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
WHEELS = ROOT / "build" / "gpu-wheels"
PACKED = WHEELS / "commit"
THERE = {"torch", "triton", "transformers", "cuda-bindings", "hip-python", "numpy"}
NOT_NEEDED = {"ruff", "mypy"}
BUILD_TOOLS = ("cmake>=3.18", "ninja>=1.5")
PEERS = ("flashinfer-python==0.6.6", "apache-tvm-ffi==0.1.15.post2")
"""Installed without what they require: the parts measured here do without it."""

MOST_BYTES = 60 << 20
PLATFORMS = (
    *(f"manylinux_2_{n}_x86_64" for n in (28, 27, 26, 24, 17, 12, 5)),
    "manylinux2014_x86_64",
    "manylinux2010_x86_64",
    "manylinux1_x86_64",
)


def name_of(requirement: str) -> str:
    """``Jinja2>=3.1`` -> ``jinja2``, as package indexes compare names."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[-_.]+", "-", match[0]).lower() if match else ""


def required() -> list[str]:
    """What building, running and testing kvrt takes, other than what must be there already."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["build-system"]["requires"],
        *BUILD_TOOLS,
        *project["project"]["dependencies"],
        *project["dependency-groups"]["dev"],
    ]
    return [text for text in wanted if name_of(text) not in THERE | NOT_NEEDED]


def missing() -> list[str]:
    """Those of `required` that this Python does not have, or not in a version that will do."""
    from packaging.requirements import Requirement  # pip and setuptools bring it

    found = []
    for text in required():
        requirement = Requirement(text)
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            found.append(text)
        else:
            if not requirement.specifier.contains(version, prereleases=True):
                found.append(text)
    return found


def pack(python: str, only: list[str], without: list[str], *, peers: bool) -> None:
    """Download wheels for a Python version, e.g. ``3.12``, with all that they require.

    Args:
        python: of the machine that they are for.
        only: requirements as `missing` names them there; empty: all of `required`.
        without: names of packages, e.g. ``cmake``, that are there.
        peers: also what kvrt is compared with.

    Raises:
        SystemExit: pip failed, or the wheels are larger than `MOST_BYTES`.
    """
    wanted = [text for text in only or required() if name_of(text) not in without]
    WHEELS.mkdir(parents=True, exist_ok=True)
    for old in WHEELS.glob("*.whl"):
        old.unlink()
    base = [
        sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(WHEELS),
        "--only-binary=:all:", "--implementation", "cp", "--python-version", python,
        *(option for name in PLATFORMS for option in ("--platform", name)),
    ]  # fmt: skip
    pins = ["--constraint", str(ROOT / "ci" / "constraints.txt")]
    subprocess.run([*base, *pins, *wanted], check=True)
    if peers:
        subprocess.run([*base, "--no-deps", *PEERS], check=True)
    PACKED.write_text(commit() + "\n")
    total = sum(wheel.stat().st_size for wheel in WHEELS.glob("*.whl"))
    for wheel in sorted(WHEELS.glob("*.whl"), key=lambda wheel: -wheel.stat().st_size):
        print(f"{wheel.stat().st_size / 2**20:6.1f} MiB  {wheel.name}")
    print(f"{total / 2**20:6.1f} MiB  in {WHEELS.relative_to(ROOT)}")
    if total > MOST_BYTES:
        sys.exit("these are too large to travel; name only what `ci/gpu missing` prints there")


def commit() -> str:
    """The commit checked out here, else the one that the wheels were packed for, else none."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        found = ""
    return found or (PACKED.read_text().strip() if PACKED.exists() else "unknown")
