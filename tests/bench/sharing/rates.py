"""Three models on one device with bursts of requests in turn, each in a process of its own: times
to the first token where they share one budget of memory, and where each has a third of it.

    ci/sharing rates --rates 4,8,16,32 --markdown docs/benchmarks/sharing.md

The experiment by which kvcached (ovg-project, 2025) shows what elastic KV memory is worth. While
one model has its burst the others are idle, so a third is too little for it and all would suffice.
At low rates nobody needs more than a third, and sharing must not cost anything.

Requests are drawn with a seed, the same ones in both ways, at times of a Poisson process within
each burst.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass

from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.sharing.share import Share
from kvrt.units import MIB

from ..page import machine

MODELS = 3
BUDGET_MIB = 48
"""Of KV memory, for all; the bundled model takes 32 KiB for 16 tokens."""

PROMPT, ANSWER = 256, 96
BURST_S, ROUNDS = 4.0, 2


@dataclass(frozen=True, slots=True)
class Plan:
    """What one model is asked.

    Args:
        arrivals: seconds after the beginning, ascending.
        seed: of its prompts.
        shared: whether it takes part in the share, or keeps a third for itself.
    """

    arrivals: list[float]
    seed: int
    shared: bool


def serve(plan: Plan) -> None:
    """A process with one model: says when it is ready, begins when it is told the time, and prints
    the seconds to each first token."""
    weights = 8 * MIB  # about those of the bundled model, and a chunk in which no page lies
    if plan.shared:
        share = Share(name="bench", size=MODELS * weights + BUDGET_MIB * MIB)
        runtime = Runtime("tiny", share=share, threads=1)
    else:
        limit = weights + BUDGET_MIB * MIB // MODELS
        runtime = Runtime("tiny", memory_limit=limit, threads=1)
    rng = random.Random(plan.seed)
    prompts = [[rng.randrange(250) for _ in range(PROMPT)] for _ in plan.arrivals]
    params = SamplingParams(max_tokens=ANSWER, ignore_eos=True)
    with runtime:
        runtime.generate([[1] * PROMPT] * 2, params)
        print("ready", flush=True)
        begin = float(sys.stdin.readline())
        streams = []
        for at, prompt in zip(plan.arrivals, prompts, strict=True):
            time.sleep(max(0.0, begin + at - time.time()))
            streams.append(runtime.stream(prompt, params))
        results = [stream.wait() for stream in streams]
        failed = sum(result.error is not None for result in results)
        print(json.dumps({"ttft": [r.timings.first_token for r in results], "failed": failed}))


def measure(rate: float, *, shared: bool) -> list[float]:
    """Seconds to the first token of all requests of all models, with so many a second in a burst.

    Raises:
        RuntimeError: a request failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        processes = [_start(_plan(model, rate, shared), folder) for model in range(MODELS)]
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        begin = time.time() + 0.5
        outputs = _all(processes, f"{begin}\n")
    found = [json.loads(output) for output in outputs]
    if failed := sum(each["failed"] for each in found):
        raise RuntimeError(f"{failed} requests failed")
    return [seconds for each in found for seconds in each["ttft"]]


def _plan(model: int, rate: float, shared: bool) -> Plan:
    rng = random.Random(f"{model} {rate}")
    arrivals = []
    for burst in range(ROUNDS):
        at = (burst * MODELS + model) * BURST_S
        end = at + BURST_S
        while (at := at + rng.expovariate(rate)) < end:
            arrivals.append(at)
    return Plan(arrivals, model, shared)


def _start(plan: Plan, folder: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.bench.sharing.rates", json.dumps(asdict(plan))]
    environ = {**os.environ, "KVRT_SHARE_DIR": folder}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environ)


def _all(processes: "list[subprocess.Popen[str]]", said: str) -> list[str]:
    """What each one prints after it was told something, all at once."""
    outputs = [""] * len(processes)

    def ask(n: int) -> None:
        outputs[n] = processes[n].communicate(said)[0]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(processes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outputs


def _p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]


def table(rates: list[float], repeats: int) -> str:
    """Markdown, thirds first; both ways in turn, so that a busy machine disturbs both."""
    lines = [
        "| requests/s in a burst | mean | ratio | p99 | ratio |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for rate in rates:
        thirds: list[float] = []
        shared: list[float] = []
        for _ in range(repeats):
            thirds += measure(rate, shared=False)
            shared += measure(rate, shared=True)
        cells = [f"{rate:g}"]
        for summary in (statistics.mean, _p99):
            a, b = summary(thirds), summary(shared)
            cells += [f"{a * 1e3:,.0f} ms, {b * 1e3:,.0f} ms", f"{a / b:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def head() -> str:
    """Of what machine it is, and of what day."""
    return f"{machine()} By `ci/sharing`."


if __name__ == "__main__":
    serve(Plan(**json.loads(sys.argv[1])))
