"""Whatever becomes of a batch on its way, each line ends exactly once in one of its files."""

import asyncio
import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from kvrt.batches import run as running
from kvrt.batches.run import Reply
from kvrt.batches.store import Store
from kvrt.batches.words import Batch
from kvrt.errors import KvrtError

from .inputs import Echo, entered, line, results, runner, write

LINES = 60


class Fickle(Echo):
    """Fails, or ends for good, by chance.

    Args:
        rng: chance.
        after: answers, after which there are no more.
    """

    def __init__(self, rng: random.Random, after: int) -> None:
        super().__init__()
        self.rng = rng
        self.after = after

    async def __call__(self, url: str, body: bytes, owner: str) -> Reply:
        if self.after == 0:
            raise KvrtError("the engine has stopped")
        self.after -= 1
        for _ in range(self.rng.randint(0, 4)):
            await asyncio.sleep(0)
        return Reply(self.rng.choice([200, 200, 200, 400]), body)


@pytest.mark.promise("P33", "P34")
@pytest.mark.parametrize("seed", range(16))
def test_each_line_ends_once_and_counts_add_up(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch, database: str | None
) -> None:
    """Under stops, cancels, faults of the disk, dying engines, and lines that are asked again."""
    rng = random.Random(seed)
    names = [f"{n}" for n in range(LINES)]
    input = write(tmp_path / "in.jsonl", [line(name, prompt=name) for name in names])
    real = running.os.fdatasync
    faulty = [False]

    def sync(file: int) -> None:
        if faulty[0] and rng.random() < 0.3:
            raise OSError(5, "Input/output error")
        real(file)

    monkeypatch.setattr(running.os, "fdatasync", sync)
    store: Any = None
    id = ""
    good: set[str] = set()
    for round in itertools.count():
        if store is None:
            store = Store(tmp_path / "state", url=database)
        batch = store.batches.get(id) if id else entered(store, input)
        id = batch.id
        if batch.over and (batch.failed or batch.left):
            store.batches.reopen(batch)
        last = round >= 10
        faulty[0] = not last
        echo = Echo() if last else Fickle(rng, rng.choice([-1, 5, 25]))
        found = asyncio.run(_round(store, batch, echo, rng, calm=last))
        output, errors = results(input)
        if found.over:
            said = [each["custom_id"] for each in output + errors]
            assert sorted(said) == sorted(names)
            assert [each["custom_id"] for each in output] == sorted(
                (each["custom_id"] for each in output), key=int
            )
            assert len(output) == found.done
            assert len(errors) == found.failed + found.left
            done = {each["custom_id"] for each in output}
            assert good <= done, "what was answered stays answered"
            good = done
            if last and found.done == LINES:
                break
        assert found.done + found.failed + found.left == found.total
        assert found.total in (0, LINES), "all lines are entered, or none yet"
        if rng.random() < 0.3:
            store.close()
            store = None
        assert round < 14
    assert len(results(input)[0]) == LINES
    if store is not None:
        store.close()


async def _round(
    store: Store, batch: Batch, echo: Echo, rng: random.Random, *, calm: bool
) -> Batch:
    worker = runner(store, echo, places=rng.randint(1, 9))
    task = asyncio.create_task(worker.run(batch.id))
    fate = "" if calm else rng.choice(["stop", "cancel", "expire", "", ""])
    for _ in range(rng.randint(0, 200)):
        await asyncio.sleep(0)
    if fate == "stop":
        worker.stop()
    elif fate:
        await worker.end(batch.id, "cancelled" if fate == "cancel" else "expired")
    try:
        await task
    except (OSError, KvrtError):
        assert not calm
    found = await store.do(store.batches.get, batch.id)
    assert found is not None
    return found


def test_what_is_kept_is_synced_before_it_is_counted_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of the calls, which no kill of a process can show: a loss of power can."""
    calls: list[str] = []
    for name in ("pwrite", "fdatasync", "fsync", "replace"):
        real = getattr(running.os, name)

        def noted(*given: Any, real: Any = real, name: str = name) -> Any:
            calls.append(name)
            return real(*given)

        monkeypatch.setattr(running.os, name, noted)
    store = Store(tmp_path / "state")
    store.database.sql.set_trace_callback(
        lambda text: calls.append("commit") if text.startswith("COMMIT") else None
    )
    input = write(tmp_path / "in.jsonl", [line("a"), line("b", status=400)])
    batch = entered(store, input)
    asyncio.run(runner(store, Echo()).run(batch.id))
    level = store.database.sql.execute("PRAGMA synchronous").fetchone()
    assert level == (2,), "a commit is synced"
    store.close()
    answers = " ".join(calls[calls.index("pwrite") :])
    assert answers.startswith("pwrite fdatasync commit")
    # Both files are whole on the disk before either has its name; both names before the end.
    assert answers.endswith("commit fsync replace fsync replace fsync commit")
