"""Servers beside each other: the same clients, of which more and more ask at once."""

import random
import statistics
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from tests.bench.peers.child import print_error
from tests.bench.serving.clients import Ask, Heard, in_turn

CLIENTS = (1, 4, 16, 64)
FIELDS = {"logit_bias": {"0": -100}}
"""The token that would end an answer is never said: all have the same length."""

PROMPT, NEW = (64, 256), 32
"""Characters of prompts, which are bytes to the tokenizer; tokens of answers."""

Row = dict[str, Any]


def asks_of(clients: int, repeat: int, *, quick: bool) -> list[Ask]:
    """Of one run; other prompts in each, so that nothing is cached."""
    drawn = random.Random(f"{clients} {repeat}")
    count = max(2 * clients, 4) if quick else max(3 * clients, 12)
    letters = "abcdefghijklmnopqrstuvwxyz ,.\n"
    less = 8 if quick else 1
    return [
        Ask("".join(drawn.choices(letters, k=drawn.randint(*PROMPT) // less)), NEW // less)
        for _ in range(count)
    ]


def measured(
    named: Mapping[str, AbstractContextManager[int]],
    repeats: int,
    *,
    clients: Sequence[int] = CLIENTS,
    quick: bool = False,
) -> list[Row]:
    """A row for each server and number of clients. A server that cannot be had is a row that says
    so."""
    rows: list[Row] = []
    with ExitStack() as open_:
        ports: dict[str, int] = {}
        for name, server in named.items():
            try:
                ports[name] = open_.enter_context(server)
                in_turn(ports[name], asks_of(1, -1, quick=True), 1, FIELDS)
            except Exception as error:
                rows.append({"server": name, "skipped": f"{type(error).__name__}: {error}"})
                print_error(f"{name} is left out: {error}")
                ports.pop(name, None)
        for count in clients:
            heard: dict[str, list[Heard]] = {name: [] for name in ports}
            rates: dict[str, list[float]] = {name: [] for name in ports}
            for repeat in range(repeats):
                for name in sorted(ports, reverse=bool(repeat % 2)):
                    asks = asks_of(count, repeat, quick=quick)
                    answers, seconds = in_turn(ports[name], asks, count, FIELDS)
                    heard[name] += answers
                    rates[name].append(len(asks) / seconds)
                    print_error(f"  {count} clients: {name}: {rates[name][-1]:.2f} requests/s")
            rows += [
                {"server": name, "clients": count, **figures(heard[name], rates[name])}
                for name in ports
            ]
    return rows


def figures(heard: Sequence[Heard], rates: Sequence[float]) -> Row:
    """Of one cell; times in seconds."""
    firsts = [each.first for each in heard]
    gaps = [gap for each in heard for gap in each.gaps]
    return {
        "requests": len(heard),
        "rate": statistics.median(rates),
        "first": percentiles(firsts),
        "gap": percentiles(gaps),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The 50th, 95th and 99th, by nearest rank."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {f"p{part}": ordered[min(last, part * len(ordered) // 100)] for part in (50, 95, 99)}
