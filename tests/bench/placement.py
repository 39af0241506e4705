"""Which models to keep on which device: kvrt's rules beside published ones, on simulated devices.

All but the static split are the very state machine of `kvrt serve` (`kvrt.server.fleet.states`)
with another policy in it: what differs is the choice alone, not how requests wait or loads begin.

- static: models are put on devices once, those of most demand first; others are not served.
- lru: the least recently asked for goes first, to where most is free (Ollama, llama-server).
- pressure: where requests a second over the objective, by the memory that is left for keys and
  values, are least afterwards; what presses least goes first (Prism's KV pressure ratio).
- kvrt: `kvrt.server.fleet.worth`.

A device reads the weights of a model once for a token of all of its requests, and does so in turn
for all models that have any; prompts come first, one after the other. Keys and values of a request
have to find room beside the weights.
"""

import argparse
import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from math import exp, inf
from pathlib import Path
from typing import Literal

from kvrt.server.fleet.members import Member, Ticket
from kvrt.server.fleet.states import Fleet
from kvrt.server.fleet.worth import PATIENCE_S, LeastWorth, Policy

GB = 10**9
DEVICES = 2
ROOM = 80 * GB
LOAD_BYTES = 20 * GB
"""A second, from host memory."""

READ_BYTES = 2000 * GB
FLOPS = 300e12
DONE = 1e-6
"""Less of a token is nothing: hours into a trace, clocks tell no smaller times apart."""

SPARE = 2 * GB
"""Of each model, the smallest KV cache."""

PARAMETERS = (14, 8, 32, 7, 3, 14, 8, 1.5, 24, 7)
"""In billions, of each model, at two bytes: 237 GB, half as much again as there is."""

PROMPT, ANSWER = 161, 338
"""Mean tokens of ShareGPT's conversations, as of vLLM's paper."""

Kind = Literal["static", "lru", "pressure", "kvrt"]
KINDS: tuple[Kind, ...] = ("static", "lru", "pressure", "kvrt")


@dataclass(slots=True, eq=False)
class Request:
    """One of a trace, and what became of it."""

    model: str
    at: float
    prompt: int
    answer: int
    first: float = inf
    left: float = 0.0
    ticket: Ticket | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """How requests come.

    Args:
        skew: the n-th model has a part of 1/n to this power: 0.9 and 2.1 as of MuxServe's traces.
        burstiness: the coefficient of variation of the time between two requests for a model: 1 is
            a Poisson process, 8 as of ServerlessLLM's.
        rate: requests a second, all together.
    """

    skew: float
    burstiness: float
    rate: float

    def requests(self, number: int, seed: int) -> list[Request]:
        draws = random.Random(seed)
        names = [str(each) for each in range(len(PARAMETERS))]
        draws.shuffle(names)  # demand does not go by size
        parts = [(at + 1) ** -self.skew for at in range(len(names))]
        shape = self.burstiness**-2
        found: list[Request] = []
        for name, part in zip(names, parts, strict=True):
            share = part / sum(parts)
            at = 0.0
            for _ in range(round(number * share)):
                at += draws.gammavariate(shape, 1 / (shape * self.rate * share))
                found.append(Request(name, at, _length(draws, PROMPT), _length(draws, ANSWER)))
        return sorted(found, key=lambda request: request.at)


def _length(draws: random.Random, mean: float, spread: float = 0.8) -> int:
    return max(1, round(draws.lognormvariate(0, spread) * mean / exp(spread**2 / 2)))


class Eager:
    """What the others have in common: whoever waits comes at once, if somebody is idle."""

    def patience(self, member: Member) -> float:
        return PATIENCE_S

    def yields(self, member: Member, lost: float, now: float) -> bool:
        return True


class Lru(Eager):
    """See the module."""

    def worth(self, member: Member, now: float) -> float:
        return member.demand.at / max(1, member.held)

    def crowding(self, members: Sequence[Member], room: int, now: float) -> float:
        return sum(each.need for each in members)

    def order(self, lost: float, crowding: float) -> tuple[float, ...]:
        return lost, crowding


class Pressure(Eager):
    """See the module."""

    def __init__(self, objective: float) -> None:
        self._objective = objective

    def worth(self, member: Member, now: float) -> float:
        return member.demand.rate(now) / self._objective / max(1, member.held)

    def crowding(self, members: Sequence[Member], room: int, now: float) -> float:
        pressure = sum(each.demand.rate(now) for each in members) / self._objective
        return pressure / max(1, room - sum(each.need - SPARE for each in members))

    def order(self, lost: float, crowding: float) -> tuple[float, ...]:
        return crowding, lost


def policy_of(kind: Kind, objective: float) -> Policy:
    return {"lru": Lru(), "pressure": Pressure(objective)}.get(kind) or LeastWorth(objective)  # type: ignore[return-value]


def weights(name: str) -> int:
    return int(PARAMETERS[int(name)] * 2 * GB)


def kv_bytes(request: Request) -> int:
    """128 KiB a token of a model of 8 billion parameters, and by the root of their number."""
    a_token = (128 << 10) * (PARAMETERS[int(request.model)] / 8) ** 0.5
    return int(a_token * (request.prompt + request.answer))


@dataclass(slots=True, eq=False)
class Device:
    """What computes. Its time is that of the last change; between changes all goes evenly."""

    held: Callable[[], int]
    now: float = 0.0
    waiting: deque[Request] = field(default_factory=deque)
    prefilling: Request | None = None
    prefilled_at: float = inf
    decoding: list[Request] = field(default_factory=list)

    def token_s(self) -> float:
        """For a token of each request."""
        return sum(weights(name) for name in {r.model for r in self.decoding}) / READ_BYTES

    def next_time(self) -> float:
        if self.prefilling is not None:
            return self.prefilled_at
        if not self.decoding:
            return inf
        return self.now + min(request.left for request in self.decoding) * self.token_s()

    def go_on(self, now: float) -> list[Request]:
        """Compute until a time at which nothing has happened in between; what has ended."""
        passed, self.now = now - self.now, now
        ended: list[Request] = []
        if self.prefilling is not None:
            if now >= self.prefilled_at:
                request, self.prefilling = self.prefilling, None
                request.first, request.left = now, float(request.answer - 1)
                self.decoding.append(request)
        elif self.decoding:
            said = passed / self.token_s()
            for request in self.decoding:
                request.left -= said
        ended = [request for request in self.decoding if request.left <= DONE]
        self.decoding = [request for request in self.decoding if request.left > DONE]
        self._begin()
        return ended

    def _begin(self) -> None:
        if self.prefilling is not None or not self.waiting:
            return
        request = self.waiting[0]
        taken = sum(kv_bytes(each) for each in self.decoding)
        if self.decoding and self.held() + taken + kv_bytes(request) > ROOM:
            return
        self.prefilling = self.waiting.popleft()
        operations = 2 * PARAMETERS[int(request.model)] * 1e9 * request.prompt
        self.prefilled_at = self.now + operations / FLOPS


class Simulation:
    """A trace on devices, under one policy; each request then knows when its first token came."""

    def __init__(self, requests: Sequence[Request], kind: Kind, objective: float) -> None:
        self._requests = requests
        self.fleet = Fleet(
            [ROOM] * DEVICES, policy=policy_of(kind, objective), most_waiting=len(requests)
        )
        self._devices = [Device(lambda p=place: self._weights(p)) for place in range(DEVICES)]  # type: ignore[misc]
        self._orders: list[tuple[float, int, str, str]] = []
        self._number = count()
        self._of: dict[Ticket, Request] = {}
        self.loads = 0
        for number in range(len(PARAMETERS)):
            name = str(number)
            self.fleet.add(
                Member(name, weights(name) + SPARE, inf, load_s=weights(name) / LOAD_BYTES)
            )
        self._static = self._split() if kind == "static" else None

    @property
    def placed(self) -> set[str]:
        """Models that are served at all."""
        return set(self.fleet.members if self._static is None else self._static)

    def _weights(self, place: int) -> int:
        members = self.fleet.members.values()
        return sum(weights(m.name) for m in members if m.place == place and m.held)

    def _split(self) -> dict[str, int]:
        """Where each model is for good: those of most demand first, where there is most room."""
        free = [ROOM] * DEVICES
        found: dict[str, int] = {}
        for name, _ in Counter(request.model for request in self._requests).most_common():
            place = max(range(DEVICES), key=lambda each: free[each])
            need = weights(name) + SPARE
            if free[place] >= need:
                free[place] -= need
                found[name] = place
                self.fleet.members[name].place, self.fleet.members[name].held = place, need
        return found

    def run(self) -> None:
        coming = deque(self._requests)
        while True:
            times = [device.next_time() for device in self._devices]
            times.append(coming[0].at if coming else inf)
            times.append(self._orders[0][0] if self._orders else inf)
            turn = self.fleet.next_time(max(d.now for d in self._devices))
            now = min(*times, turn)
            if now == inf:
                return
            for device in self._devices:
                for request in device.go_on(now):
                    if request.ticket is not None:
                        self.fleet.done(request.ticket, now)
            while coming and coming[0].at <= now:
                self._came(coming.popleft(), now)
            while self._orders and self._orders[0][0] <= now:
                _, _, verb, name = heapq.heappop(self._orders)
                if verb == "load":
                    self.loads += 1
                    member = self.fleet.members[name]
                    self.fleet.loaded(name, now, member.need, member.guessed_load_s)
                else:
                    self.fleet.gone(name, now)
            if now >= turn:
                self.fleet.advance(now)
            self._take(now)

    def _came(self, request: Request, now: float) -> None:
        if self._static is None:
            request.ticket = self.fleet.ask(request.model, now)
            self._of[request.ticket] = request
        elif request.model in self._static:
            self._devices[self._static[request.model]].waiting.append(request)

    def _take(self, now: float) -> None:
        orders, settled = self.fleet.take()
        for order in orders:
            seconds = weights(order.model) / LOAD_BYTES if order.verb == "load" else 0.05
            heapq.heappush(
                self._orders, (now + seconds, next(self._number), order.verb, order.model)
            )
        for ticket in settled:
            place = self.fleet.members[ticket.model].place
            assert place is not None, "it is loaded"
            self._devices[place].waiting.append(self._of[ticket])
        for device in self._devices:
            device.go_on(now)


@cache
def waits(trace: Trace, kind: Kind, objective: float, number: int, seed: int) -> list[float]:
    """Seconds to the first token of each request; infinite: it was not served."""
    requests = trace.requests(number, seed)
    Simulation(requests, kind, objective).run()
    return [request.first - request.at for request in requests]


def goodput(
    trace: Trace, kind: Kind, objective: float, *, number: int = 10_000, seed: int = 0
) -> float:
    """The part of the requests whose first token came within an objective."""
    told = objective if kind in ("pressure", "kvrt") else 1.0  # the others do not look at it
    found = waits(trace, kind, told, number, seed)
    return sum(each <= objective for each in found) / len(found)


TRACES = (
    Trace(0.9, 1, 2.0),
    Trace(0.9, 8, 2.0),
    Trace(2.1, 1, 2.0),
    Trace(2.1, 8, 2.0),
    Trace(0.9, 8, 0.5),
    Trace(2.1, 8, 6.0),
)
OBJECTIVES = (0.5, 2.0, 5.0)


def rows(number: int, seeds: int) -> Iterator[str]:
    """A table: of each trace and objective, the goodput of each policy."""
    yield f"| skew | burstiness | requests/s | objective | {' | '.join(KINDS)} |"
    yield "| ---: " * (4 + len(KINDS)) + "|"
    for trace in TRACES:
        for objective in OBJECTIVES:
            found = []
            for kind in KINDS:
                each = [
                    goodput(trace, kind, objective, number=number, seed=seed)
                    for seed in range(seeds)
                ]
                found.append(sum(each) / seeds)
            told = [
                f"**{100 * value:.1f}**" if value == max(found) else f"{100 * value:.1f}"
                for value in found
            ]
            yield (
                f"| {trace.skew} | {trace.burstiness} | {trace.rate} | {objective} s |"
                f" {' | '.join(told)} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, help="write the table there, too")
    given = parser.parse_args()
    table = []
    for row in rows(given.requests, given.seeds):
        print(row, flush=True)
        table.append(row)
    if given.output is not None:
        given.output.write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    main()
