"""What becomes of a server's batches where the fault is ours."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvrt import Runtime
from kvrt.aio.runtime import AsyncRuntime
from kvrt.batches.store import Store
from kvrt.batches.words import Batch
from kvrt.server.batches import worker as workers
from kvrt.server.batches.worker import Worker
from kvrt.server.config import ServerConfig
from kvrt.server.openai.embeddings import Embeddings
from kvrt.server.service import Service
from tests.batches.inputs import line

URL = "/v1/completions"
LINES = [line(f"n{n}", prompt=f"say {n}", max_tokens=2) for n in range(6)]


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime("tiny", backend="cpu", memory_limit="256MiB", policy="priority") as one:
        yield one


class Faulty:
    """Does what it is put in place of, but the first few times.

    Args:
        times: that it fails.
    """

    def __init__(self, real: Callable[..., Awaitable[Any]], times: int) -> None:
        self._real = real
        self.left = times

    async def __call__(self, *given: Any) -> Any:
        if self.left:
            self.left -= 1
            raise RuntimeError("a fault of ours")
        return await self._real(*given)


async def working(
    runtime: Runtime, folder: Path, place: str, faults: int, then: Callable[..., Awaitable[None]]
) -> None:
    """A server's batches, with faults at a method of what works on them."""
    service = Service(AsyncRuntime(runtime), ServerConfig())
    store = Store(folder)
    none = Embeddings(None, strict=False, any_name=False)
    worker = Worker(store, service, none, space=1 << 30, most=100)
    faulty = Faulty(getattr(worker._runner, place), faults)
    setattr(worker._runner, place, faulty)
    await worker.begin()
    try:
        await then(worker, faulty)
    finally:
        await worker.close()
        service.close()


async def begun(worker: Worker) -> Batch:
    store = worker.store
    data = b"".join(json.dumps(each).encode() + b"\n" for each in LINES)
    store.files.path("file-1").write_bytes(data)
    await store.do(store.files.add, "file-1", "me", "batch", "in", len(data), None)
    outputs = ("file-2", "file-3")
    batch = await store.do(store.batches.create, "me", URL, "file-1", outputs)
    worker.add(batch)
    return batch


async def over(worker: Worker, batch: Batch) -> Batch:
    async with asyncio.timeout(120):
        while True:
            found = await worker.store.do(worker.store.batches.get, batch.id)
            assert found is not None
            if found.over and batch.id not in worker._tasks:
                return found
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("place", ["_check", "_ask_kind", "_finish"])
@pytest.mark.parametrize("faults", [workers.FAULTS - 1, workers.FAULTS])
def test_a_batch_that_fails_by_a_fault_of_ours_is_tried_again_and_then_given_up(
    runtime: Runtime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    faults: int,
) -> None:
    monkeypatch.setattr(workers, "AGAIN_S", 0.01)

    async def then(worker: Worker, faulty: Faulty) -> None:
        batch = await over(worker, await begun(worker))
        assert not faulty.left
        if faults < workers.FAULTS:
            assert (batch.status, batch.done) == ("completed", len(LINES))
            return
        assert batch.status == "failed"
        assert [each.code for each in batch.problems] == ["internal_error"]
        assert batch.done == (len(LINES) if place == "_finish" else 0)
        if place != "_check":  # it had begun: what is there is gone on from
            await worker.store.do(worker.store.batches.reopen, batch)
            worker.add(batch)
            batch = await over(worker, batch)
            assert (batch.status, batch.done, batch.problems) == ("completed", len(LINES), ())
            output = worker.store.files.path("file-2").read_bytes().splitlines()
            assert [json.loads(each)["custom_id"] for each in output] == [
                each["custom_id"] for each in LINES
            ]

    asyncio.run(working(runtime, tmp_path / "state", place, faults, then))


def test_what_was_answered_of_a_batch_that_was_given_up_outlives_the_server(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "AGAIN_S", 0.01)
    given: list[Batch] = []

    async def fails(worker: Worker, faulty: Faulty) -> None:
        given.append(await over(worker, await begun(worker)))
        assert given[0].status == "failed"

    async def goes_on(worker: Worker, faulty: Faulty) -> None:
        asked: list[int] = []
        worker._answer._answered = asked.append
        await worker.store.do(worker.store.batches.reopen, given[0])
        worker.add(given[0])
        assert (await over(worker, given[0])).status == "completed"
        assert not asked, "all lines had their answers"

    state = tmp_path / "state"
    asyncio.run(working(runtime, state, "_finish", workers.FAULTS, fails))
    asyncio.run(working(runtime, state, "_finish", 0, goes_on))
