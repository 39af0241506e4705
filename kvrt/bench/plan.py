"""A run from its plan to its result."""

import asyncio
import itertools
import os
import platform
import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

import kvrt
from kvrt.bench.arrivals import BURSTINESS, Arrivals, of_trace, offsets
from kvrt.bench.clocks import Clocks, of_run
from kvrt.bench.data import Drawn, Lengths, Scale, Talk, read_talks
from kvrt.bench.energy import meters
from kvrt.bench.load import Asking, Load, calibrated, warmed
from kvrt.bench.prices import WEIGHTS
from kvrt.bench.targets import Target
from kvrt.bench.words import Record, Run
from kvrt.errors import ConfigError, KvrtError

MOST_AT_ONCE = 16
"""Requests that warm up at once."""

COUNTED_S = 1.0
"""Within which a server has counted all requests that it has answered."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured.

    Args:
        name: that the result goes by; empty: the model's.
        data: drawn, or a file of JSON lines.
        new: tokens of answers, where a file does not say.
        clients: of a closed loop; 0: an open one, by `rate` or by the file's time stamps.
        rate: conversations begun in a second; None: as the file says.
        arrivals, burstiness: see `kvrt.bench.arrivals`.
        speed: a file's time stamps pass so many times as fast.
        requests, seconds: when to begin no more; both None: when the file ends.
        warmup: requests before, which do not count.
        warm: ask each conversation's first turn before, so that all is cached that can be. Else
            texts begin as none did before, so that nothing of an earlier run is.
        seed: of what is drawn.
        per_hour, per_kwh, weights: see `kvrt.bench.prices`.
    """

    name: str = ""
    data: Drawn | Path = field(default_factory=lambda: Drawn(Lengths(256, 256), Lengths(64, 64)))
    new: Lengths = field(default_factory=lambda: Lengths(64, 64))
    clients: int = 0
    rate: float | None = None
    arrivals: Arrivals = "poisson"
    burstiness: float = BURSTINESS
    speed: float = 1.0
    requests: int | None = None
    seconds: float | None = None
    warmup: int = 1
    warm: bool = False
    seed: int = 1
    per_hour: float | None = None
    per_kwh: float | None = None
    weights: tuple[float, float, float] = WEIGHTS

    @property
    def load(self) -> dict[str, Any]:
        """How it is asked, as the result tells it."""
        told: dict[str, Any] = {"requests": self.requests, "seconds": self.seconds}
        if self.clients:
            told |= {"loop": "closed", "clients": self.clients}
        elif self.rate is None:
            told |= {"loop": "open", "arrivals": "trace", "speed": self.speed}
        else:
            told |= {"loop": "open", "arrivals": self.arrivals, "rate": self.rate}
            if self.arrivals == "bursty":
                told["burstiness"] = self.burstiness
        return {**told, "warmup": self.warmup, "cache": "warm" if self.warm else "cold"}


class Session:
    """One run of a plan against a target.

    Args:
        told: is called with each request that has ended.
    """

    def __init__(
        self, plan: Plan, target: Target, told: Callable[[Record], None] = lambda record: None
    ) -> None:
        self._plan = plan
        self._target = target
        self._told = told
        self._asking: Asking | None = None
        self._stopped = False

    def stop(self) -> None:
        """Ask no more, and keep what was measured."""
        self._stopped = True
        if self._asking is not None:
            self._asking.stop()

    async def measure(self) -> Run:
        """All of it.

        Raises:
            KvrtError: the target cannot be asked, or refuses the first request.
            ConfigError: a file cannot be read.
        """
        plan, target = self._plan, self._target
        about = await target.about()
        scale = await calibrated(target)
        seed = str(plan.seed) if plan.warm else f"{plan.seed} {secrets.token_hex(4)}"
        await self._warm(seed, scale or Scale())
        date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        counters = meters(here=target.here)
        self._asking = Asking(
            target, self._talks(seed, scale or Scale()), self._load(seed, scale), self._told
        )
        if self._stopped:
            self._asking.stop()
        before = await self._clocks()
        found = await self._asking.measure()
        clocks = await self._clocks_since(before, sum(bool(each.pieces) for each in found.records))
        return Run(
            name=plan.name or str(about["model"]),
            made_by=f"kvrt {kvrt.__version__}",
            date=date,
            target=about,
            machine=machine(),
            load=plan.load,
            data={**_data(plan), **_scale(scale), "seed": seed},
            seconds=found.seconds,
            cut=found.cut,
            records=found.records,
            held=found.held,
            held_why=found.held_why,
            clocks=clocks,
            energy=[each.counted() for each in counters],
            per_hour=plan.per_hour,
            per_kwh=plan.per_kwh,
            weights=plan.weights,
        )

    async def _clocks(self) -> Clocks | str:
        """What the target knows of its times, or why it does not say."""
        try:
            return await self._target.clocks()
        except KvrtError as error:
            return str(error)

    async def _clocks_since(self, before: Clocks | str, asked: int) -> Mapping[str, Any]:
        """Of the run. A server may count a request a moment after its answer has ended."""
        end = time.monotonic() + COUNTED_S
        while True:
            after = await self._clocks()
            if isinstance(before, str) or isinstance(after, str):
                return {"why": before if isinstance(before, str) else after}
            if after.firsts - before.firsts >= asked or time.monotonic() > end:
                return of_run(before, after, asked)
            await asyncio.sleep(0.02)

    async def _warm(self, seed: str, scale: Scale) -> None:
        plan, talks = self._plan, self._talks(seed, scale)
        if plan.warm:
            if plan.requests is None and isinstance(plan.data, Drawn):
                raise KvrtError(
                    "what is drawn has no end: so much cannot be asked before",
                    fix="say how many requests with --requests",
                )
            count = plan.requests or sum(1 for _ in self._talks(seed, scale))
            await warmed(self._target, talks, count, plan.clients or MOST_AT_ONCE)
        elif plan.warmup:
            others = self._talks(f"{seed} warm-up", scale)
            await warmed(self._target, others, plan.warmup, plan.clients or MOST_AT_ONCE)

    def _talks(self, seed: str, scale: Scale) -> Iterator[Talk]:
        plan = self._plan
        if isinstance(plan.data, Drawn):
            return plan.data.talks(seed, scale)
        found = read_talks(plan.data, plan.new, seed, scale)
        if plan.clients == 0 and plan.rate is None:
            return iter(sorted(found, key=lambda talk: talk.at or 0.0))
        return iter(found) if plan.requests is plan.seconds is None else itertools.cycle(found)

    def _load(self, seed: str, scale: Scale | None) -> Load:
        plan = self._plan
        load = Load(clients=plan.clients, requests=plan.requests, seconds=plan.seconds)
        if plan.rate is not None:
            rng = random.Random(f"{plan.seed} arrivals")
            load.offsets = offsets(plan.arrivals, plan.rate, rng, plan.burstiness)
        elif not plan.clients:
            times = [talk.at for talk in self._talks(seed, scale or Scale())]
            known = [each for each in times if each is not None]
            if len(known) < len(times):
                raise ConfigError(
                    f"{plan.data}: not all lines have a timestamp",
                    fix="say when they are to be asked with --rate or --clients",
                )
            load.offsets = of_trace(known, plan.speed)
        return load


def machine() -> Mapping[str, Any]:
    """What this machine is."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processors": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": round(os.getloadavg()[0], 2),
    }


def _data(plan: Plan) -> dict[str, Any]:
    if isinstance(plan.data, Path):
        return {"kind": "file", "file": plan.data.name, "new_tokens": str(plan.new)}
    drawn = plan.data
    return {
        "kind": "drawn",
        "prompt_tokens": str(drawn.prompt),
        "new_tokens": str(drawn.new),
        "turns": drawn.turns,
        "prefixes": drawn.prefixes,
        "prefix_tokens": drawn.prefix,
    }


def _scale(scale: Scale | None) -> dict[str, Any]:
    """Of a target that does not count tokens, a word counts as one."""
    if scale is None:
        return {"tokens_per_word": None, "tokens_added": None}
    return {"tokens_per_word": round(scale.per_word, 4), "tokens_added": round(scale.fixed, 1)}
