"""Clients that read streams of completions, and note when each piece came."""

import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt, as text or token ids, and how many tokens are to come."""

    prompt: str | list[int]
    new: int


@dataclass(slots=True)
class Heard:
    """One answer: seconds since it was asked for."""

    pieces: list[float] = field(default_factory=list)
    text: str = ""

    @property
    def first(self) -> float:
        return self.pieces[0]

    @property
    def last(self) -> float:
        return self.pieces[-1]

    @property
    def gaps(self) -> list[float]:
        """Between two pieces."""
        return [later - earlier for earlier, later in itertools.pairwise(self.pieces)]


async def hear(port: int, ask: Ask, fields: dict[str, Any]) -> Heard:
    """Ask for one completion on a connection of its own.

    Raises:
        ValueError: it is refused, or ends early.
    """
    body = json.dumps(
        {"model": "m", "prompt": ask.prompt, "max_tokens": ask.new, "temperature": 0,
         "stream": True, **fields}
    ).encode()  # fmt: skip
    heard, begun = Heard(), time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        head = await reader.readuntil(b"\r\n\r\n")
        if head.split()[1] != b"200":
            raise ValueError(f"the server answers {head.split()[1].decode()}")
        reason = None
        async for line in reader:
            if not line.startswith(b"data: {"):
                continue
            (choice,) = json.loads(line[6:])["choices"] or [{}]
            if choice.get("text"):
                heard.pieces.append(time.perf_counter() - begun)
                heard.text += choice["text"]
            reason = choice.get("finish_reason") or reason
        if reason != "length" or not heard.pieces:
            raise ValueError(f"an answer ended by {reason}, and not by its length")
        return heard
    finally:
        writer.close()


async def _all(asks: Sequence[Ask], one: Callable[[Ask], Awaitable[Heard]]) -> list[Heard]:
    async with asyncio.timeout(TIMEOUT_S):
        return await asyncio.gather(*map(one, asks))


def together(port: int, asks: Sequence[Ask], fields: dict[str, Any]) -> list[Heard]:
    """Ask for all at once."""
    return asyncio.run(_all(asks, lambda ask: hear(port, ask, fields)))


def in_turn(
    port: int, asks: Sequence[Ask], clients: int, fields: dict[str, Any]
) -> tuple[list[Heard], float]:
    """So many clients, each of which asks for the next when it has heard one. Also the seconds
    that all took."""

    async def scene() -> list[Heard]:
        places = asyncio.Semaphore(clients)

        async def one(ask: Ask) -> Heard:
            async with places:
                return await hear(port, ask, fields)

        return await _all(asks, one)

    begun = time.perf_counter()
    return asyncio.run(scene()), time.perf_counter() - begun
