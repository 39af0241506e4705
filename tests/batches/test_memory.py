"""Memory of a batch does not grow with its lines."""

import asyncio
from pathlib import Path

import psutil
import pytest

from kvrt.batches.run import Reply
from kvrt.batches.store import Store

from .inputs import Echo, entered, line, runner, write


class Watching(Echo):
    """Notes what memory the process has, once in a while."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.seen: list[int] = []

    async def __call__(self, url: str, body: bytes, owner: str) -> Reply:
        if self.count % 500 == 0:
            self.seen.append(psutil.Process().memory_info().rss)
        self.count += 1
        return Reply(200, body)


@pytest.mark.promise("P33")
@pytest.mark.parametrize("lines", [4000, pytest.param(50_000, marks=pytest.mark.extra)])
def test_memory_does_not_grow_with_lines(tmp_path: Path, lines: int) -> None:
    input = write(
        tmp_path / "in.jsonl",
        (line(f"{n}", prompt=f"{n} " + "x" * 2000) for n in range(lines)),
    )
    store, echo = Store(tmp_path / "state"), Watching()
    batch = entered(store, input)
    assert asyncio.run(runner(store, echo, places=64).run(batch.id)).done == lines
    store.close()
    # Input and output are 8 MB each for 4,000 lines, and 100 MB for 50,000.
    assert echo.seen[-1] - echo.seen[2] < 4 << 20
