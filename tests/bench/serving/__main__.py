"""What `kvrt serve` costs beside the runtime in it, and how it stands beside other servers.

    ci/serving                                both, with SmolLM2-135M's shape: about 15 minutes
    ci/serving --only cost
    ci/serving --work /tmp/peers --llama-server /path/to/llama-server
    ci/serving --vllm build/vllm/bin/python   vLLM's, too; the environment is that of ci/vllm
    ci/serving --quick                        only see that all of it runs

Installs llama.cpp's Python package into a virtual environment of its own in --work, as ci/peers
does, and makes the model there, when they aren't there yet. Writes a table and JSON.
"""

import argparse
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.peers.__main__ import commit, machine
from tests.bench.peers.child import ROOT, end_as_by_ctrl_c
from tests.bench.peers.convert import prepare
from tests.bench.peers.engines import ENGINES
from tests.bench.peers.shapes import SHAPES, make_checkpoint
from tests.bench.serving import beside, cost, servers
from tests.bench.serving.report import table

SHAPE = "smollm2-135m"
FORMAT = "8 bit"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="ci/serving", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--only", choices=("cost", "beside"), help="one of the two")
    parser.add_argument("--repeats", type=int, default=5, help="of each (default: 5)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)),
                        help="of each server (default: the processors there are)")  # fmt: skip
    parser.add_argument("--llama-server", type=Path, metavar="BINARY",
                        help="llama.cpp's own server, if it has been built")  # fmt: skip
    parser.add_argument("--vllm", type=Path, metavar="PYTHON",
                        help="of an environment with vLLM")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="an eighth of the tokens, once")
    parser.add_argument("--work", type=Path, default=ROOT / "build/peers", metavar="FOLDER",
                        help="for environments and models (default: build/peers)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=ROOT / "docs/benchmarks", metavar="FOLDER",
                        help="for the results (default: docs/benchmarks)")  # fmt: skip
    asked = parser.parse_args()
    end_as_by_ctrl_c()
    try:
        run(asked)
    except KeyboardInterrupt:
        return 130
    return 0


def run(asked: argparse.Namespace) -> None:
    work = asked.work.resolve()
    (work / "models").mkdir(parents=True, exist_ok=True)
    repeats = 1 if asked.quick else asked.repeats
    date = f"{datetime.now(UTC):%Y-%m-%d}"
    found: dict[str, Any] = {"date": date, "machine": machine(), "commit": commit(),
                             "shape": SHAPE, "threads": asked.threads}  # fmt: skip
    with (work / "serving.log").open("w") as log:
        if asked.only != "beside":
            model = make_checkpoint(SHAPES[SHAPE], work / "models" / SHAPE)
            found["cost"] = cost.measured(model, asked.threads, repeats, log, quick=asked.quick)
        if asked.only != "cost":
            engine = next(e for e in ENGINES if e.files == "gguf" and e.format == FORMAT)
            gguf = prepare(engine, SHAPE, work / "models", Path(sys.executable))
            named = {
                "kvrt serve": servers.kvrt(gguf, asked.threads, log),
                "llama-cpp-python's server": servers.llama_cpp_python(
                    gguf, asked.threads, log, work
                ),
            }
            if asked.llama_server is not None:
                binary = asked.llama_server.resolve()
                named["llama-server"] = servers.llama_server(gguf, asked.threads, log, binary)
            if asked.vllm is not None:
                whole = make_checkpoint(SHAPES[SHAPE], work / "models" / SHAPE)
                as_that = ("--dtype", "bfloat16")
                named["kvrt serve, bfloat16"] = servers.kvrt(whole, asked.threads, log, *as_that)
                python = asked.vllm.absolute()
                named["vLLM, bfloat16"] = servers.vllm(whole, asked.threads, log, python)
            found["beside"] = beside.measured(named, repeats, quick=asked.quick)
    out = work if asked.quick else asked.out
    said = table(found)
    (out / f"{date}-serving.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / f"{date}-serving.md").write_text(said)
    print(said)


if __name__ == "__main__":
    sys.exit(main())
