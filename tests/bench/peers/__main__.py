"""kvrt beside llama.cpp, OpenVINO GenAI and torch on this machine's CPU, in one run.

    ci/peers                                         SmolLM2-135M's shape
    ci/peers --shapes qwen3-0.6b --reps 1
    ci/peers --engines kvrt llama.cpp --formats "4 bit"
    ci/peers --quick                                 only see that all of it runs

Installs the peers into virtual environments of their own and makes the models, both in --work, when
they aren't there yet: half an hour, most of which is a compiler's. A peer that can't be had is a
line of the result. Engines of a format are loaded together and take turns. Writes a table and JSON;
the exit status is 1 if no peer that computes in float32 agrees on kvrt's tokens.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from tests.bench.peers import report
from tests.bench.peers.child import ROOT, end_as_by_ctrl_c
from tests.bench.peers.engines import ENGINES, FORMATS, PEERS
from tests.bench.peers.shapes import SHAPES
from tests.bench.peers.turns import Row, compare
from tests.bench.peers.work import works

DEFAULT_SHAPES = ("smollm2-135m",)
INSTRUCTIONS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
                "asimddp", "i8mm", "bf16", "sve")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="ci/peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--engines", nargs="+", choices=PEERS, default=PEERS, metavar="NAME",
                        help=f"of {', '.join(PEERS)}")  # fmt: skip
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS, metavar="FORMAT",
                        help=f"of {', '.join(FORMATS)}")  # fmt: skip
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=DEFAULT_SHAPES,
                        metavar="SHAPE", help=f"of {', '.join(SHAPES)}")  # fmt: skip
    parser.add_argument("--reps", type=int, default=3, help="of each cell (default: 3)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)),
                        help="of each engine (default: the processors there are)")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="an eighth of the tokens, once")
    parser.add_argument("--work", type=Path, default=ROOT / "build/peers", metavar="FOLDER",
                        help="for environments and models (default: build/peers)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=ROOT / "docs/benchmarks", metavar="FOLDER",
                        help="for the results (default: docs/benchmarks)")  # fmt: skip
    asked = parser.parse_args()
    end_as_by_ctrl_c()
    try:
        return run(asked)
    except KeyboardInterrupt:
        return 130


def run(asked: argparse.Namespace) -> int:
    work = asked.work.resolve()
    (work / "models").mkdir(parents=True, exist_ok=True)
    loads = works(quick=asked.quick)
    repeats = 1 if asked.quick else asked.reps
    rows: list[Row] = []
    begun, date = time.monotonic(), datetime.now(UTC)
    about = {
        "date": f"{date:%Y-%m-%d}", "machine": machine(), "commit": commit(),
        "threads": asked.threads, "repeats": repeats, "rows": rows,
    }  # fmt: skip
    out = work if asked.quick else asked.out
    name = f"{date:%Y-%m-%d}-peers-{'-'.join(asked.shapes)}"
    with (work / "engines.log").open("w") as log:
        for shape in asked.shapes:
            for format_ in asked.formats:
                chosen = [
                    engine
                    for engine in ENGINES
                    if engine.format == format_ and engine.peer in asked.engines
                ]
                rows += compare(chosen, shape, loads, repeats, asked.threads, work, log)
                result = about | {"seconds": time.monotonic() - begun}
                paths = report.write(result, loads, out, name)  # what is cut short leaves the rest
    print(paths[1].read_text())
    print(*paths, sep="\n")
    wrong = report.disagreeing(rows)
    print(*wrong, sep="\n", file=sys.stderr)
    return 1 if report.unconfirmed(rows) else 0


def machine() -> str:
    """The processor, with those of its instructions for which engines have kernels."""
    said = Path("/proc/cpuinfo").read_text()
    fields = dict(line.split(":", 1) for line in said.splitlines() if ":" in line)
    named = {name.strip(): value.strip() for name, value in fields.items()}
    flags = named.get("flags", named.get("Features", "")).split()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    has = ", ".join(flag for flag in INSTRUCTIONS if flag in flags)
    return (
        f"{named.get('model name', platform.machine())} ({has}), {os.cpu_count()} processors, "
        f"{memory / 2**30:.0f} GiB"
    )


def commit() -> str:
    named = ["git", "rev-parse", "--short=12", "HEAD"]
    said = subprocess.run(named, cwd=ROOT, check=False, capture_output=True, text=True)
    return said.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
