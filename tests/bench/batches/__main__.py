"""What `kvrt batch run` keeps of the embedded throughput, and how it stands beside vLLM's.

    ci/batches                            the former, with SmolLM2-135M's shape: about 5 minutes
    ci/batches --vllm build/vllm/bin/python    both; the environment is that of ci/vllm
    ci/batches --quick                    only see that all of it runs

Writes a table and JSON.
"""

import argparse
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.batches import beside, kept
from tests.bench.peers.__main__ import commit, machine
from tests.bench.peers.child import ROOT, end_as_by_ctrl_c
from tests.bench.peers.shapes import SHAPES, make_checkpoint

SHAPE = "smollm2-135m"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="ci/batches", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--only", choices=("kept", "beside"), help="one of the two")
    parser.add_argument("--lines", type=int, default=200, help="of a batch (default: 200)")
    parser.add_argument("--new", type=int, default=32, help="tokens of an answer (default: 32)")
    parser.add_argument("--repeats", type=int, default=5, help="of the first part (default: 5)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)),
                        help="of each engine (default: the processors there are)")  # fmt: skip
    parser.add_argument("--vllm", type=Path, metavar="PYTHON", help="of an environment with vLLM")
    parser.add_argument("--quick", action="store_true", help="a few lines, once")
    parser.add_argument("--work", type=Path, default=ROOT / "build/peers", metavar="FOLDER",
                        help="for models and what is written (default: build/peers)")  # fmt: skip
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
    model = make_checkpoint(SHAPES[SHAPE], work / "models" / SHAPE)
    lines, new, repeats = (12, 4, 1) if asked.quick else (asked.lines, asked.new, asked.repeats)
    date = f"{datetime.now(UTC):%Y-%m-%d}"
    found: dict[str, Any] = {"date": date, "machine": machine(), "commit": commit(),
                             "shape": SHAPE, "threads": asked.threads}  # fmt: skip
    if asked.only != "beside":
        found["kept"] = kept.measured(str(model), asked.threads, lines, new, repeats)
    if asked.only != "kept" and asked.vllm is not None:
        with (work / "batches.log").open("w") as log:
            tools = [
                beside.kvrt_tool(model, asked.threads, work),
                beside.vllm_tool(asked.vllm.absolute(), model, asked.threads, work),
            ]
            found["beside"] = beside.measured(tools, work, lines, new, log)
    out = work if asked.quick else asked.out
    said = table(found)
    (out / f"{date}-batches.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / f"{date}-batches.md").write_text(said)
    print(said)


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    said = [
        f"# Batches, {found['date']}",
        "",
        f"{found['machine']}; commit {found['commit']}; {found['shape']}'s shape;",
        f"{found['threads']} threads. Written by `ci/batches`.",
    ]
    if own := found.get("kept"):
        said += [
            "",
            f"{own['lines']} lines of {own['new']} tokens keep {own['kept']:.3f} of the embedded",
            f"throughput, and {own['kept_of_work']:.3f} by the processors' time.",
        ]
    if rows := found.get("beside"):
        said += [
            "",
            "| tool | lines | whole | peak memory | kept of a kill at 3/4 | the rest |",
            "| --- | --: | --: | --: | --: | --: |",
        ]
        for row in rows:
            peak = f"{row['peak'] / 2**30:.2f} GiB"
            times = f"{row['seconds']:.1f} s | {peak} | {row['kept']} | {row['rest']:.1f} s"
            said.append(f"| {row['tool']} | {row['lines']} | {times} |")
        said += ["", "Times are of the whole command, from its start to its end."]
    return "\n".join(said) + "\n"


if __name__ == "__main__":
    sys.exit(main())
