"""Run a Python module on an emulated GPU, as ``python -m MODULE`` would run it.

python -m tests.emulator cuda -m kvrt_cli doctor
python -m tests.emulator rocm --set keeps_memory=1 -m pytest tests/emulator/inside
"""

import argparse
import importlib
import runpy
import sys
from pathlib import Path

from tests.emulator import library
from tests.emulator.place import HostPlace, InterpreterPlace

PLACES = {"torch": HostPlace, "interpreter": InterpreterPlace}
TESTS = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.emulator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("vendor", choices=library.VENDORS)
    parser.add_argument("--binding", metavar="FOLDER", help="import the binding from here")
    parser.add_argument("--unchanged", action="store_true", help="leave the backend as it is")
    parser.add_argument("--kernels", choices=PLACES, default="torch", help="what computes")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[])
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, required=True)
    asked = parser.parse_args()
    if asked.binding:
        sys.path.insert(0, asked.binding)
    emulator = library.load(asked.vendor)
    for setting in asked.set:
        name, _, value = setting.partition("=")
        emulator.set(**{name: int(value)})
    if asked.kernels == "interpreter":  # whose faults `kvrt_interpreted` mends
        sys.path[:0] = [str(TESTS / "triton" / "plugin"), str(TESTS / "plugins")]
    if not asked.unchanged:
        put_in_place(asked.vendor, PLACES[asked.kernels]())
    sys.argv = asked.module
    runpy.run_module(asked.module[0], run_name="__main__", alter_sys=True)


def put_in_place(vendor: str, place: HostPlace) -> None:
    """Let the backend take the host's memory for its device's; nothing else of it changes."""
    package = importlib.import_module(f"kvrt_{vendor}")
    package.backend = type(package.backend)(place)


if __name__ == "__main__":
    main()
