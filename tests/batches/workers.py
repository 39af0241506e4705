"""One of several workers on a batch of a database, as a process of its own.

    python workers.py URL FOLDER SECONDS

It answers lines after so many seconds, each with its own number, and ends with the batch.
"""

import asyncio
import json
import os
import random
import sys
from pathlib import Path

from kvrt.batches import run as running
from kvrt.batches.run import Reply
from kvrt.batches.store import Store
from kvrt.batches.words import Tokens
from tests.batches.inputs import Echo, runner


class Slow(Echo):
    async def __call__(self, url: str, body: bytes, owner: str) -> Reply:
        asked = json.loads(body)
        await asyncio.sleep(self.seconds * random.random() * 2)
        said = json.dumps({**asked, "by": os.getpid()}).encode()
        return Reply(asked.get("status", 200), said, Tokens(2, 1, 3))


def main(url: str, folder: Path, seconds: float) -> None:
    running.LOOK_S = 0.05
    store = Store(folder / "state", url=url)
    (batch,) = store.batches.page("", None, 2)
    asyncio.run(runner(store, Slow(seconds)).run(batch.id))
    store.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
