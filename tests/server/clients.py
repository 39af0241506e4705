"""Clients by the dozen in one event loop, which ask over plain sockets and may lose patience."""

import asyncio
import contextlib
import json
import random
import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

PREFIXES = ["Write a function that ", "def main(argv):\n    ", "The quick brown fox " * 8,
            "import os\nimport sys\n" * 12]  # fmt: skip
"""What prompts begin with, so that pages are found again."""

ROUTES = ("/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/chat",
          "/api/generate")  # fmt: skip


def asked(route: str, text: str, most: int, *, stream: bool) -> dict[str, Any]:
    """A request's body, as its route wants it."""
    messages = [{"role": "user", "content": text}]
    own: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": text, "max_tokens": most, "ignore_eos": True},
        "/v1/chat/completions": {"messages": messages, "max_tokens": most},
        "/v1/messages": {"messages": messages, "max_tokens": most},
        "/v1/responses": {"input": text, "max_output_tokens": most},
        "/api/chat": {"messages": messages, "options": {"num_predict": most}},
        "/api/generate": {"prompt": text, "options": {"num_predict": most}},
    }
    return {"model": "tiny", "stream": stream, **own[route]}


@dataclass
class Crowd:
    """Clients that ask one request after the other.

    Args:
        port: of the server, on this machine.
        leaves: of all requests, so many are left in the middle, by closing the connection.
        aborts: so many are reset at once.
    """

    port: int
    leaves: float = 0.05
    aborts: float = 0.01
    counts: Counter[str] = field(default_factory=Counter)

    async def run(self, clients: int, seconds: float, seed: int) -> None:
        """All of them, for so long; each ends what it has begun."""
        end = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._client(random.Random(seed * 1000 + number), end))

    async def _client(self, rng: random.Random, end: float) -> None:
        while time.monotonic() < end:
            await self._ask(rng)

    async def _ask(self, rng: random.Random) -> None:
        route = rng.choice(ROUTES)
        text = rng.choice(PREFIXES) + "".join(rng.choices("abcdefgh \n", k=rng.randint(1, 60)))
        body = json.dumps(asked(route, text, rng.randint(1, 48), stream=rng.random() < 0.7))
        head = (
            f"POST {route} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        fate = rng.random()
        try:
            writer.write(head.encode())
            await writer.drain()
            if fate < self.aborts:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, linger
                )
                self.counts["aborted"] += 1
            elif fate < self.aborts + self.leaves:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(rng.random() * 0.1):
                        await reader.read(rng.randint(1, 4000))
                self.counts["left"] += 1
            else:
                async with asyncio.timeout(120):
                    answer = await reader.read()
                status = answer.split(maxsplit=2)[1].decode()
                self.counts[status] += 1
                if b'"error":{' in answer:
                    self.counts["broken"] += 1
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
