"""One engine in its own Python: questions as lines of JSON in, answers as lines of JSON out.

    PYTHON -m tests.bench.peers.worker PEER THREADS

Whatever else the engine prints goes to stderr. Ends with its input.
"""

import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.bench.peers.work import Request, as_json

DRIVERS = {"kvrt": "kvrt", "torch": "torch", "llama.cpp": "llama", "openvino": "openvino"}


def main(peer: str, threads: int) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    driver: Any = None
    for line in sys.stdin:
        about = json.loads(line)
        try:
            if about["question"] == "load":
                name = f"tests.bench.peers.drivers.{DRIVERS[peer]}"
                before = time.perf_counter()
                driver = importlib.import_module(name).Driver(
                    Path(about["path"]), threads, **about["options"]
                )
                said: Any = {"versions": driver.versions, "seconds": time.perf_counter() - before}
            else:
                said = timed(driver, [Request(**each) for each in about["requests"]])
        except Exception as error:
            traceback.print_exc()
            said = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        print(json.dumps(said), file=answers, flush=True)
    os._exit(0)  # some engines hang in what they do at exit


def timed(driver: Any, requests: list[Request]) -> dict[str, Any]:
    """One run: answers, and what the machine did meanwhile."""
    driver.prepare(requests)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what is resident now
    mine, all_ = own_seconds(), machine_seconds()
    before = time.perf_counter()
    answers = driver.run(requests)
    wall = time.perf_counter() - before
    others = (machine_seconds() - all_) - (own_seconds() - mine)
    return {
        "answers": as_json(answers),
        "foreign_cores": max(0.0, others / wall),
        "peak_bytes": peak_bytes(),
    }


def own_seconds() -> float:
    """Of processor time, of this process and its threads."""
    used = os.times()
    return used.user + used.system


def machine_seconds() -> float:
    """Of processor time, of everything on this machine."""
    user, nice, system, _, _, irq, softirq, *_ = map(
        int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
