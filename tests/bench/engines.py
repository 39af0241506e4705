"""Several models of one process at once: with a thread for each engine, as kvrt has it, and with
one thread that takes their steps in turn, beside one model alone.

All have the same requests at the same time. Told of are the tokens/s of all together, the processor
time that a token takes, and the pauses of a stream of one model while another reads long prompts.
The kernels have one team of threads for the process in either way (docs/design/engine-thread.md),
so the ways differ in whose Python runs when. Two minutes on two cores for each model.
"""

import argparse
import contextlib
import itertools
import random
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from kvrt.config import RuntimeConfig
from kvrt.engine.assembly import assemble
from kvrt.engine.engine import Engine
from kvrt.engine.intake import Wishes, request_of
from kvrt.engine.request import Request
from kvrt.engine.worker import Worker
from kvrt.outputs import Delta, Result
from kvrt.sampling import SamplingParams

from .page import head, machine, row
from .peers.shapes import SHAPES, make_checkpoint

PROMPT = 16
LOADS = {"bundled": ((1, 400), (8, 200)), "smollm2-135m": ((1, 96), (8, 48))}
"""Of each model: streams at once, and tokens of each."""

READ = (2, 900)
"""Prompts of another model, and tokens of each, that come while one streams."""

TALK = 64


@dataclass
class Heard:
    """What one model said, and when."""

    ends: int
    times: list[float] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def deliver(self, event: Delta | Result) -> None:
        if isinstance(event, Delta):
            self.times.append(time.perf_counter())
            return
        self.ends -= 1
        if not self.ends:
            self.done.set()


@dataclass(frozen=True)
class Load:
    """So many prompts of one length, and tokens to say after each."""

    streams: int
    tokens: int
    prompt: int = PROMPT


class Ways:
    """Models opened twice: with a thread for each, and on this thread."""

    def __init__(self, stack: contextlib.ExitStack, config: RuntimeConfig, count: int) -> None:
        self._config, self._draws = config, random.Random(0)
        self.workers = [Worker(config) for _ in range(count)]
        for worker in self.workers:
            worker.open(None)
            stack.callback(worker.close, 10)
        self.engines = [assemble(config, stack, None, _nothing).engine for _ in range(count)]

    def requests(self, load: Load) -> tuple[Heard, list[Request]]:
        heard = Heard(load.streams)
        wishes = Wishes(params=SamplingParams(max_tokens=load.tokens, ignore_eos=True))
        prompts = [
            [self._draws.randrange(3, 200) for _ in range(load.prompt)] for _ in range(load.streams)
        ]
        one = self.workers[0]
        return heard, [
            request_of(one, self._config, prompt, wishes, heard.deliver) for prompt in prompts
        ]

    def apart(self, loads: Sequence[Load]) -> list[Heard]:
        """A thread for each."""
        asked = [self.requests(load) for load in loads]
        for worker, (_, requests) in zip(self.workers, asked, strict=False):
            for request in requests:
                worker.submit(worker.number(), request)
        for heard, _ in asked:
            heard.done.wait()
        return [heard for heard, _ in asked]

    def in_turn(self, loads: Sequence[Load]) -> list[Heard]:
        """One thread for all."""
        asked = [self.requests(load) for load in loads]
        engines: list[Engine] = self.engines[: len(loads)]
        for engine, (_, requests) in zip(engines, asked, strict=True):
            for request in requests:
                engine.add(request)
        while busy := [engine for engine in engines if engine.busy]:
            for engine in busy:
                engine.step()
        for engine in engines:
            engine.rest()
        return [heard for heard, _ in asked]


def _nothing() -> None:
    """Nobody changes their mind."""


def measured(config: RuntimeConfig, loads: Sequence[Load], count: int, turns: int) -> Iterator[str]:
    """Markdown."""
    with contextlib.ExitStack() as stack:
        ways = Ways(stack, config, count)
        called = {"alone": ways.apart, "a thread each": ways.apart, "one thread": ways.in_turn}
        yield from head(f"{count} models", *called, "one thread over a thread each")
        for load in loads:
            rates: dict[str, list[float]] = {name: [] for name in called}
            costs: dict[str, list[float]] = {name: [] for name in called}
            for turn in range(turns + 1):
                for name in list(called)[:: 1 if turn % 2 else -1]:
                    models = 1 if name == "alone" else count
                    begun, computed = time.perf_counter(), time.process_time()
                    called[name]([load] * models)
                    tokens = models * load.streams * load.tokens
                    if turn:  # in the first one, memory comes and steps are recorded
                        rates[name].append(tokens / (time.perf_counter() - begun))
                        costs[name].append((time.process_time() - computed) / tokens)
            for what, found, form in (
                ("tokens/s", rates, "{:.0f}"),
                (
                    "processor ms a token",
                    {k: [1e3 * x for x in v] for k, v in costs.items()},
                    "{:.2f}",
                ),
            ):
                pairs = zip(found["one thread"], found["a thread each"], strict=True)
                yield row(
                    f"{load.streams} streams each, {what}",
                    *(form.format(median(each)) for each in found.values()),
                    f"{median(one / each for one, each in pairs):.2f}",
                )
        yield ""
        yield from head("pauses of a stream beside another's prompts", "median", "p95", "longest")
        for name in ("a thread each", "one thread"):
            pauses: list[float] = []
            for _ in range(turns):
                talk, read = Load(1, TALK), Load(READ[0], 1, READ[1])
                times = called[name]([talk, read])[0].times
                pauses += [1e3 * (b - a) for a, b in itertools.pairwise(times)]
            pauses.sort()
            told = [f"{pauses[int(at * (len(pauses) - 1))]:.1f} ms" for at in (0.5, 0.95, 1)]
            yield row(name, *told)
        yield ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="ci/engines", description=__doc__)
    parser.add_argument("--models", nargs="+", type=int, default=[2, 3], help="at once")
    parser.add_argument("--shapes", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--turns", type=int, default=6, help="of which medians are taken")
    given = parser.parse_args()
    print(f"{machine()}\n")
    with tempfile.TemporaryDirectory() as folder:
        for shape in given.shapes:
            bundled = shape == "bundled"
            model = "tiny" if bundled else make_checkpoint(SHAPES[shape], Path(folder) / shape)
            config = RuntimeConfig(
                model=str(model),
                backend="cpu",
                dtype="auto" if bundled else "bfloat16",
                memory_limit="1GiB",
                prefix_cache=False,
            )
            loads = [Load(*load) for load in LOADS[shape]]
            for count in given.models:
                print(f"{shape}:\n")
                for line in measured(config, loads, count, given.turns):
                    print(line, flush=True)


if __name__ == "__main__":
    main()
