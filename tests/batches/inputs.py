"""Inputs of batches, what answers them without a model, and what became of them."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kvrt.batches.places import Places
from kvrt.batches.run import Reply, Rules, Runner
from kvrt.batches.store import Store
from kvrt.batches.words import Batch, Kind, Tokens

URL = "/v1/completions"
RULES = Rules((URL, "/v1/embeddings"), longest=1 << 16)


def line(name: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": URL, "body": {"model": "tiny", **body}}


def write(path: Path, lines: Iterable[object]) -> Path:
    """Lines that are no JSON are given as bytes."""
    with path.open("wb") as file:
        for each in lines:
            file.write((each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n")
    return path


def many(path: Path, count: int) -> Path:
    return write(path, (line(f"line-{n}", prompt=f"say {n}") for n in range(count)))


class Echo:
    """Answers a line with its body; a body that has a ``status`` fails with it.

    Args:
        seconds: that an answer takes.
        most: further lines are never answered.
    """

    def __init__(self, seconds: float = 0, most: int | None = None) -> None:
        self.asked: list[Any] = []
        self.inside = self.together = 0
        self.seconds = seconds
        self.most = most

    async def __call__(self, url: str, body: bytes, owner: str) -> Reply:
        asked = json.loads(body)
        self.asked.append(asked)
        self.inside += 1
        self.together = max(self.together, self.inside)
        held = self.most is not None and len(self.asked) > self.most
        try:
            await asyncio.sleep(3600 if held else self.seconds)
        finally:
            self.inside -= 1
        return Reply(asked.get("status", 200), body, Tokens(2, 1, 3))

    @asynccontextmanager
    async def answers(self, kind: Kind) -> AsyncIterator["Echo"]:
        yield self


def runner(store: Store, echo: Echo, places: int = 8, rules: Rules = RULES) -> Runner:
    return Runner(store, rules, echo.answers, Places(lambda: places), Path, listed=False)


def entered(store: Store, input: Path, **options: Any) -> Batch:
    """A batch whose files stand beside its input."""
    outputs = (str(input.with_name("out.jsonl")), str(input.with_name("errors.jsonl")))
    return store.batches.create("", "", str(input), outputs, **options)


def read(path: Path) -> list[Any]:
    return [json.loads(each) for each in path.read_bytes().splitlines()] if path.exists() else []


def results(input: Path) -> tuple[list[Any], list[Any]]:
    """The lines of the output, and those of the errors."""
    return read(input.with_name("out.jsonl")), read(input.with_name("errors.jsonl"))
