"""What HTTP costs: the same streams, asked of an embedded runtime and of a server, in turns."""

import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from tests.bench.peers.child import print_error, worker
from tests.bench.peers.work import Answer, Request, Work
from tests.bench.serving import servers
from tests.bench.serving.clients import Ask, together

STREAMS = 16
DTYPE = "bfloat16"
FIELDS = {"ignore_eos": True}


ALONE = 8
"""Requests, one after the other, for the time to a first token when nothing else goes on."""

Run = dict[str, float]


def works(*, quick: bool) -> tuple[Work, Work]:
    """Streams with prompts of 64 to 256 tokens, as `ci/peers` asks for; and one request."""
    less = 8 if quick else 1
    lengths = tuple((64 + (at * 7 % STREAMS) * 192 // 15) // less for at in range(STREAMS))
    streams = Work("streams", lengths, 128 // less, "answered", "new tokens/s")
    return streams, Work("alone", (128 // less,), 2, "decoded", "")


def measured(model: Path, threads: int, repeats: int, log: IO[str], *, quick: bool) -> Any:
    """Rates and times to the first token of both, by repeat, and what they come to."""
    streams, alone = works(quick=quick)
    found: dict[str, list[Run]] = {"embedded": [], "http": []}
    with (
        worker(Path(sys.executable), "kvrt", threads, log) as inside,
        servers.kvrt(model, threads, log, "--dtype", DTYPE) as port,
    ):
        inside.ask("load", path=str(model), options={"dtype": DTYPE})

        def embedded(requests: list[Request]) -> list[Answer]:
            said = inside.ask("run", requests=[asdict(each) for each in requests])
            return [Answer(**each) for each in said["answers"]]

        def http(requests: list[Request]) -> list[Answer]:
            heard = together(port, [Ask(each.prompt, each.new) for each in requests], FIELDS)
            return [Answer([], each.first, each.last) for each in heard]

        ways = {"embedded": embedded, "http": http}
        for repeat in range(-1, repeats):  # the first is to warm up
            for name in sorted(ways, reverse=bool(repeat % 2)):
                run = one_run(ways[name], streams, alone, repeat)
                print_error(f"  {name} {repeat + 1}: {run['rate']:.1f} tokens/s")
                if repeat >= 0:
                    found[name].append(run)
    return {"runs": found, "new": streams.new, **summary(found)}


def one_run(
    ask: Callable[[list[Request]], list[Answer]], streams: Work, alone: Work, repeat: int
) -> Run:
    answers = ask(streams.requests(repeat))
    firsts = [ask(alone.requests(repeat * ALONE + number))[0].first for number in range(ALONE)]
    return {
        "rate": streams.new * STREAMS / max(each.last for each in answers),
        "first": statistics.median(each.first for each in answers),
        "alone": statistics.median(firsts),
    }


def summary(found: dict[str, list[Run]]) -> dict[str, float]:
    """Medians over pairs of neighbours in time, since the machine's speed changes."""
    pairs = list(zip(found["embedded"], found["http"], strict=True))
    told = {"kept": statistics.median(http["rate"] / own["rate"] for own, http in pairs)}
    for name in ("first", "alone"):
        told[f"{name}_grows"] = statistics.median(http[name] - own[name] for own, http in pairs)
    for name in ("rate", "first", "alone"):
        told[f"embedded_{name}"] = statistics.median(own[name] for own, _ in pairs)
    return told
