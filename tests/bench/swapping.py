"""A server of several models: how long the stream of one pauses while others are loaded, and
whether any of many requests is lost.

Two models of the shape of SmolLM2-135M (538 MB each, random weights) take turns in memory for one,
beside the bundled model, which streams meanwhile. A pause is the time between two pieces of the
stream, as a client sees it; told of are those with nothing else to do, and those while one of the
two is loaded, or gives its memory back. About a minute on two cores.
"""

import argparse
import http.client
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from kvrt.model.files.resolve import resolve

from .page import head, row
from .peers.shapes import SHAPES, make_checkpoint
from .serving.servers import KVRT, free_port, listening

GOAL_S = 0.05
ROOM = "620MiB"
TALKER = "talker"
SWAPPED = ("one", "two")
LONG = 900


def ask(port: int, name: str, **fields: Any) -> int:
    """One short request; its status."""
    body = {"model": name, "prompt": [5, 6, 7], "max_tokens": 2, "ignore_eos": True, **fields}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    with closing(connection):
        connection.request("POST", "/v1/completions", json.dumps(body))
        response = connection.getresponse()
        response.read()
        return response.status


def pauses(port: int, until: threading.Event) -> Iterator[float]:
    """Seconds between two pieces of a stream, which begins anew when it has ended."""
    body = json.dumps({"model": TALKER, "prompt": [5, 6, 7], "max_tokens": LONG, "stream": True,
                       "ignore_eos": True})  # fmt: skip
    while not until.is_set():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        with closing(connection):
            connection.request("POST", "/v1/completions", body)
            response = connection.getresponse()
            last = None
            while (line := response.readline()) and not until.is_set():
                if line.startswith(b"data: {"):
                    now = time.perf_counter()
                    if last is not None:
                        yield now - last
                    last = now


def while_it(port: int, does: Any) -> tuple[list[float], float]:
    """Pauses while something is done, and how long it took."""
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(lambda: list(pauses(port, over)))
        time.sleep(1)
        begun = time.perf_counter()
        does()
        took = time.perf_counter() - begun
        over.set()
        return watching.result(), took


def measured(turns: int, requests: int) -> Iterator[str]:
    """Markdown."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(resolve("tiny"), folder / "models" / TALKER)
        for each in SWAPPED:
            make_checkpoint(SHAPES["smollm2-135m"], folder / "models" / each)
        port = free_port()
        command: list[str | Path] = [
            sys.executable, "-c", KVRT, "serve", "--models", folder / "models", "--backend", "cpu",
            "--port", str(port), "--memory-limit", ROOM,
        ]  # fmt: skip
        with (folder / "log").open("w") as log, listening(command, port, log):
            yield from _lines(port, turns, requests)


def _lines(port: int, turns: int, requests: int) -> Iterator[str]:
    ask(port, TALKER)
    quiet, _ = while_it(port, lambda: time.sleep(3))
    swaps, took = while_it(port, lambda: [ask(port, SWAPPED[turn % 2]) for turn in range(turns)])
    yield from head("stream", "pieces", "median pause", "p99", "longest", "goal")
    for what, found in (("alone", quiet), (f"during {turns} swaps", swaps)):
        found.sort()
        told = [f"{1000 * found[int(at * (len(found) - 1))]:.1f} ms" for at in (0.5, 0.99, 1)]
        yield row(what, len(found), *told, f"{1000 * GOAL_S:.0f} ms")
    yield ""
    yield f"A swap took {took / turns:.2f} s."
    draws = random.Random(0)
    names = [draws.choice((TALKER, *SWAPPED)) for _ in range(requests)]
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda name: ask(port, name), names))
    lost = sum(status != 200 for status in statuses)
    yield f"Of {requests} requests at random, {lost} were not answered."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=10, help="swaps to measure")
    parser.add_argument("--requests", type=int, default=200, help="at random")
    given = parser.parse_args()
    for line in measured(given.turns, given.requests):
        print(line, flush=True)


if __name__ == "__main__":
    main()
