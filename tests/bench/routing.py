"""How many tokens several servers compute for conversations, by how requests are spread over them.

    ci/route                     four servers of the bundled model: about three minutes
    ci/route --out docs/benchmarks

Conversations share a few system prompts, and each turn brings all that was said before it. Each
server has a quarter of the memory that all of them need. Counted is what the answers say: tokens of
prompts, less those that were cached. In the last row one of the servers is killed in the middle of
the run, and started again. Writes a table; no time is measured.
"""

import argparse
import random
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.routing.conftest import publishing, replicas
from tests.server.conftest import Server, launch, listening, started, until

SERVERS, CLIENTS = 4, 8
SYSTEMS, CONVERSATIONS, TURNS = 4, 40, 5
SYSTEM_TOKENS, USER_TOKENS, NEW_TOKENS = 256, 48, 24
KV_MIB = 10
"""Of a server; a token takes 2 KiB, so that all conversations are some 30."""
WEIGHTS_MIB = 8


@dataclass
class Counts:
    """What a run came to."""

    requests: int = 0
    lost: int = 0
    prompt: int = 0
    cached: int = 0


class Trace:
    """Conversations of random tokens, of which so many go on at once."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._systems = [self._tokens(SYSTEM_TOKENS) for _ in range(SYSTEMS)]
        self.counts = Counts()
        self._lock = threading.Lock()

    def run(self, port: Server, middle: "threading.Event") -> Counts:
        """Ask all turns; a conversation's one after the other, many conversations at once."""
        said = [[*self._rng.choice(self._systems)] for _ in range(CONVERSATIONS)]
        turns = [n for n in range(CONVERSATIONS) for _ in range(TURNS)]
        self._rng.shuffle(turns)
        busy = [threading.Lock() for _ in said]
        asked = [(n, self._tokens(USER_TOKENS)) for n in turns]

        def turn(item: tuple[int, list[int]]) -> None:
            number, user = item
            with busy[number]:
                said[number] += user
                said[number] += self._ask(port, said[number])
            if self.counts.requests == len(turns) // 2:
                middle.set()

        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(turn, asked))
        return self.counts

    def _ask(self, server: Server, prompt: list[int]) -> list[int]:
        body = {"model": "tiny", "prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0}
        status, answer = server.post("/v1/completions", body)
        with self._lock:
            self.counts.requests += 1
            if status != 200:
                self.counts.lost += 1
                return self._tokens(NEW_TOKENS)
            usage = answer["usage"]
            self.counts.prompt += usage["prompt_tokens"]
            self.counts.cached += usage["prompt_tokens_details"]["cached_tokens"]
        # What was said is known by its text alone; equal runs go on with equal tokens.
        return random.Random(answer["choices"][0]["text"]).choices(range(100, 4000), k=NEW_TOKENS)

    def _tokens(self, count: int) -> list[int]:
        return self._rng.choices(range(100, 4000), k=count)


@contextmanager
def routed(folder: Path, policy: str, *, kills: bool = False) -> Iterator[tuple[Server, "Killer"]]:
    """A router before servers that are ready."""
    with ExitStack() as running:
        found = []
        for number in range(SERVERS):
            place = folder / f"{policy}-{kills}-{number}"
            place.mkdir()
            memory = ("--memory-limit", f"{KV_MIB + WEIGHTS_MIB}MiB", "--threads", "1")
            found.append(running.enter_context(publishing(place, *memory)))
        urls = [address for _, address in found]
        log = folder / f"{policy}-{kills}.log"
        router = launch(log, *urls, "--policy", policy, "--port", "0", command="route")
        running.enter_context(listening(router))
        until(lambda: all(each["state"] == "up" for each in replicas(router)), 120)
        yield router, Killer(found[-1][0] if kills else None)


class Killer(threading.Event):
    """Kills a server once it is set."""

    def __init__(self, server: Server | None) -> None:
        super().__init__()
        self._server = server

    def set(self) -> None:
        if self._server is not None and not self.is_set():
            self._server.process.kill()
        super().set()


def measured(folder: Path, seed: int) -> dict[str, Counts]:
    """What each way came to."""
    found = {}
    place = folder / "one"
    place.mkdir()
    memory = ("--memory-limit", f"{SERVERS * KV_MIB + WEIGHTS_MIB}MiB")
    with started(place, *memory) as one:
        found["one server with the memory of all"] = Trace(seed).run(one, threading.Event())
    for policy in ("round-robin", "least-loaded", "prefix"):
        with routed(folder, policy) as (router, killer):
            found[f"`{policy}`"] = Trace(seed).run(router, killer)
    with routed(folder, "prefix", kills=True) as (router, killer):
        found["`prefix`, one of the servers killed"] = Trace(seed).run(router, killer)
    return found


def table(found: dict[str, Counts]) -> str:
    """Markdown."""
    worst = found["`round-robin`"]
    lines = [
        f"# Conversations over {SERVERS} servers, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"By `ci/route`: {CONVERSATIONS} conversations of {TURNS} turns, {SYSTEMS} system prompts"
        f" of {SYSTEM_TOKENS} tokens, {CLIENTS} clients at once; the bundled model, {KV_MIB}"
        " MiB of KV memory for each server.",
        "",
        "| | requests | lost | tokens of prompts | computed | of round-robin's |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, each in found.items():
        computed = each.prompt - each.cached
        part = computed / (worst.prompt - worst.cached)
        lines.append(
            f"| {name} | {each.requests} | {each.lost} | {each.prompt:,} | {computed:,} |"
            f" {part:.2f} |"
        )
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="ci/route", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the table; default: none")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvrt-route-") as folder:
        said = table(measured(Path(folder), asked.seed))
    if asked.out is not None:
        (asked.out / f"{datetime.now(UTC):%Y-%m-%d}-route.md").write_text(said)
    print(said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
