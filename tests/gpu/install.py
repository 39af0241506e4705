"""Install kvrt into a virtual environment over this Python's own packages, without a network.

The environment sees what this Python sees, also if that is itself a virtual environment, of which
``--system-site-packages`` alone would see only what lies below.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tests.gpu.steps import PYTHON, VENV
from tests.gpu.wheels import PEERS, ROOT, WHEELS, name_of, required


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.install", description=__doc__)
    parser.add_argument("--no-native", action="store_true", help="leave the C++ kernels out")
    asked = parser.parse_args()
    if not PYTHON.exists():
        venv.create(VENV, system_site_packages=True, symlinks=True)  # pip is that below
        below = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        own = sysconfig.get_path("purelib", "venv", {"base": str(VENV), "platbase": str(VENV)})
        Path(own, "kvrt-below.pth").write_text("\n".join(below) + "\n")
    if importlib.util.find_spec("pip") is None:
        sys.exit(f"{sys.executable} has no pip: python3 -m ensurepip")
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
           "--no-index", "--find-links", str(WHEELS)]  # fmt: skip
    WHEELS.mkdir(parents=True, exist_ok=True)
    # Before kvrt, and all at once: it is built with what is installed here.
    subprocess.run([*pip, *required()], check=True)
    native = ["-C", "cmake.define.KVRT_NATIVE=OFF"] if asked.no_native else []
    environment = {**os.environ, "PATH": f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(
        [*pip, "--no-build-isolation", *native, "--editable", str(ROOT)],
        check=True,
        env=environment,
    )
    for peer in PEERS:
        if any(name_of(wheel.name.partition("-")[0]) == name_of(peer.partition("=")[0])
               for wheel in WHEELS.glob("*.whl")):  # fmt: skip
            subprocess.run([*pip, "--no-deps", peer], check=True)


if __name__ == "__main__":
    main()
