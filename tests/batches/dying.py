"""A batch whose process is killed at each call that keeps something, one after the other.

    python dying.py FOLDER

Prints, for each of these calls, how the batch ended that was begun again after it, as JSON.
"""

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvrt.batches import commits
from kvrt.batches.places import Places
from kvrt.batches.run import Reply, Rules, Runner
from kvrt.batches.store import Store
from kvrt.batches.words import Kind, Tokens

URL = "/v1/completions"
LINES = 10
CALLS = ("pwrite", "fdatasync", "fsync", "replace", "unlink")


async def answer(url: str, body: bytes, owner: str) -> Reply:
    await asyncio.sleep(0)
    return Reply(400 if json.loads(body)["prompt"] % 4 == 0 else 200, body, Tokens(1, 0, 1))


class Answers:
    def __init__(self, kind: Kind) -> None:
        pass

    async def __aenter__(self) -> Any:
        return answer

    async def __aexit__(self, *_: object) -> None:
        pass


class Death:
    """Ends the process at the call of this number, which a `torn` write has begun.

    Args:
        at: counted from 1; 0: never.
    """

    def __init__(self, at: int, *, torn: bool) -> None:
        self.at, self.torn, self.count = at, torn, 0

    def die(self, *given: Any) -> None:
        self.count += 1
        if self.count == self.at:
            if self.torn and len(given) == 3:  # pwrite
                file, data, place = given
                REAL["pwrite"](file, bytes(data[: len(data) // 2]), place)
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def dying(*given: Any, **named: Any) -> Any:
            self.die(*given)
            return call(*given, **named)

        return dying

    def statement(self, text: str) -> None:
        if text.startswith("COMMIT"):
            self.die()


REAL = {name: getattr(os, name) for name in CALLS}


def work(folder: Path, death: Death) -> dict[str, Any]:
    commits.TOGETHER, commits.WITHIN_S = 3, 0.001
    for name in CALLS:
        setattr(os, name, death.before(REAL[name]))
    store = Store(folder / "state")
    store.database.sql.set_trace_callback(death.statement)
    input = folder.parent / "in.jsonl"
    found = store.batches.page("", None, 1)
    outputs = (str(folder / "out"), str(folder / "errors"))
    batch = found[0] if found else store.batches.create("", "", str(input), outputs)
    runner = Runner(store, Rules((URL,), 4096), Answers, Places(lambda: 4), Path, listed=False)
    ended = asyncio.run(runner.run(batch.id))
    store.close()
    shown = {name: getattr(ended, name) for name in ("status", "total", "done", "failed")}
    return {**shown, "said": ended.tokens.said, "calls": death.count}


def killed(folder: Path, death: Death) -> bool:
    """Whether a process of its own came to that call."""
    child = os.fork()
    if not child:
        work(folder, death)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or status == 0, status
    return os.WIFSIGNALED(status)


def main(root: Path) -> None:
    with (root / "in.jsonl").open("w") as file:
        for n in range(LINES):
            body = {"model": "tiny", "prompt": n}
            line = {"custom_id": str(n), "method": "POST", "url": URL, "body": body}
            file.write(json.dumps(line) + "\n")
    for torn in (False, True):
        at = 0
        while True:
            at += 1
            folder = root / f"{at}-{torn}"
            folder.mkdir()
            if not killed(folder, Death(at, torn=torn)):
                break
            ended = work(folder, Death(0, torn=False))
            left = sorted(
                str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
            )
            names = {
                name: [json.loads(line)["custom_id"] for line in (folder / name).open()]
                for name in ("out", "errors")
            }
            print(json.dumps({"at": at, "torn": torn, **ended, "names": names, "left": left}))
            shutil.rmtree(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
