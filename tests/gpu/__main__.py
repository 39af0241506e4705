"""Tests and benchmarks of one device, on a machine that has torch, Triton, the vendor's Python
binding and transformers, and no network.

    ci/gpu pack [--python 3.12] [--peers]    where there is a network: collect wheels
    ci/gpu missing                                  on the machine: what it lacks of them
    ci/gpu [--backend cuda] [--only STEP...]        on the machine: install, test, measure
    ci/gpu merge FILE.json...                       one page of several runs' results

Wheels are kept in build/gpu-wheels, which git ignores; let it travel with the tree.
Each step is a command of its own; when one fails, the next is run all the same. Results go to $OUT
(default: docs/benchmarks) as JSON and as a page, and the steps' whole output to a log beside them.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from tests.gpu import report, wheels
from tests.gpu.run import run
from tests.gpu.steps import PYTHON, step_names, steps

OUT = Path(os.environ.get("OUT") or wheels.ROOT / "docs" / "benchmarks")


def main() -> int:
    words = sys.argv[1:]
    command = words[0] if words and not words[0].startswith("-") else "run"
    commands = {"pack": pack, "missing": missing, "merge": merge, "run": everything}
    if command not in commands:
        sys.exit(f"ci/gpu: there is no command {command!r}; there are {', '.join(commands)}")
    return commands[command](words[1:] if words[:1] == [command] else words)


def parser_of(command: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"ci/gpu {command}".removesuffix(" run"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def pack(words: list[str]) -> int:
    parser = parser_of("pack")
    parser.add_argument("--python", default="3.12", help="of the machine (default: 3.12)")
    parser.add_argument("--peers", action="store_true", help="also FlashInfer, 11 MiB")
    parser.add_argument("requirement", nargs="*", help="default: all that may be missing")
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME", help="e.g. cmake")
    asked = parser.parse_args(words)
    wheels.pack(asked.python, asked.requirement, asked.without, peers=asked.peers)
    return 0


def missing(words: list[str]) -> int:
    parser_of("missing").parse_args(words)
    print("\n".join(wheels.missing()))
    return 0


def merge(words: list[str]) -> int:
    parser = parser_of("merge")
    parser.add_argument("result", nargs="+", type=Path, help="the older first")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FOLDER")
    asked = parser.parse_args(words)
    results = [json.loads(path.read_text()) for path in asked.result]
    for path in report.write(report.merged(results), asked.out):
        print(path)
    return 0


def everything(words: list[str]) -> int:
    parser = parser_of("run")
    parser.add_argument("--backend", default="cuda", help="default: cuda")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps only")
    parser.add_argument("--budget", type=float, metavar="SECONDS",
                        help="start nothing that will not fit, and end what does not")  # fmt: skip
    parser.add_argument("--out", type=Path, default=OUT, metavar="FOLDER")
    parser.add_argument("--small", action="store_true", help="small sizes: only see that it runs")
    parser.add_argument("--no-native", action="store_true", help="leave the C++ kernels out")
    parser.add_argument("--list", action="store_true", help="print the steps' names, and end")
    asked = parser.parse_args(words)
    names = step_names(asked.backend)
    unknown = [name for name in asked.only or () if name not in names]
    if unknown:
        parser.error(f"no such step: {', '.join(unknown)}; there are {', '.join(names)}")
    if asked.list:
        print("\n".join(names))
        return 0
    # Results say what they were measured on, and nothing runs before it is installed.
    wanted = {*(asked.only or ()), "machine", *(() if PYTHON.exists() else ("install",))}
    chosen = [
        step
        for step in steps(asked.backend, small=asked.small, native=not asked.no_native)
        if (step.name in wanted if asked.only else not step.optional)
    ]
    return run(chosen, asked.backend, asked.out, asked.budget, small=asked.small)


if __name__ == "__main__":
    sys.exit(main())
