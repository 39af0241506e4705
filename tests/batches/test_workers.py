"""Several workers on the batches of one database, which come, stop and are killed."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from kvrt.batches import run as running
from kvrt.batches.deliveries import deliveries_of
from kvrt.batches.store import Store
from kvrt.batches.words import Batch
from kvrt.errors import ConfigError

from .inputs import Echo, entered, line, many, results, runner, write

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "LOOK_S", 0.02)


@contextmanager
def opened(url: str, folder: Path, number: int = 1, **options: object) -> Iterator[list[Store]]:
    """Workers of one folder, in this process."""
    stores = [Store(folder / "state", url=url, **options) for _ in range(number)]  # type: ignore[arg-type]
    try:
        yield stores
    finally:
        for store in stores:
            store.close()


def begun(url: str, folder: Path, seconds: float) -> "subprocess.Popen[bytes]":
    """A worker that is a process of its own."""
    command = [sys.executable, "-m", "tests.batches.workers", url, str(folder), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT)


def check(input: Path, lines: int, bad: int = 0) -> list[dict[str, object]]:
    """Each line stands once in one of the files, in order."""
    good, wrong = results(input)
    names = [each["custom_id"] for each in good]
    assert names == sorted(names, key=lambda name: int(name.removeprefix("line-")))
    assert len({*names, *(each["custom_id"] for each in wrong)}) == lines
    assert (len(names), len(wrong)) == (lines - bad, bad)
    return good


@pytest.mark.promise("P33")
@pytest.mark.parametrize(
    ("lines", "kills", "seconds"),
    [(600, 8, 0.15), pytest.param(50_000, 20, 0.02, marks=pytest.mark.extra)],
)
def test_workers_that_are_killed_at_random_answer_each_line_once(
    postgres: str, tmp_path: Path, lines: int, kills: int, seconds: float
) -> None:
    """Three at a time; who is killed is followed by another. A line takes so many seconds, so that
    the batch is not over before."""
    rng = random.Random(lines)
    input = write(
        tmp_path / "in.jsonl",
        (line(f"line-{n}", prompt=f"{n}", **({"status": 400} if n % 50 == 7 else {}))
         for n in range(lines)),
    )  # fmt: skip
    with opened(postgres, tmp_path) as (watching,):
        batch = entered(watching, input)
        workers = [begun(postgres, tmp_path, seconds) for _ in range(3)]
        killed = 0
        try:
            while killed < kills:
                found = watching.batches.get(batch.id)
                assert found is not None
                assert not found.over, "it was over before all kills"
                if found.done + found.failed > killed * lines // (kills + 4):
                    time.sleep(rng.random() * 0.02)
                    victim = workers.pop(rng.randrange(3))
                    victim.kill()
                    victim.wait()
                    killed += 1
                    workers.append(begun(postgres, tmp_path, seconds))
                time.sleep(0.005)
            for worker in workers:
                assert worker.wait(240) == 0
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        found = watching.batches.get(batch.id)
    assert found is not None
    bad = len(range(7, lines, 50))
    good = check(input, lines, bad)
    assert (found.status, found.done, found.failed) == ("completed", lines - bad, bad)
    assert found.tokens.said == 3 * lines, "what was told twice counts once"
    by = Counter(each["response"]["body"]["by"] for each in good)  # type: ignore[index]
    assert len(by) > 3, "several have worked"
    assert not [*tmp_path.rglob("*.part")]
    assert not [*(tmp_path / "state" / "journals").iterdir()] or found.failed


def test_workers_share_a_batch_and_no_line_is_asked_twice(postgres: str, tmp_path: Path) -> None:
    input = many(tmp_path / "in.jsonl", 400)
    with opened(postgres, tmp_path, 3) as stores:
        batch = entered(stores[0], input)
        echoes = [Echo(0.002) for _ in stores]

        async def all_of_them() -> list[Batch]:
            workers = [runner(*pair) for pair in zip(stores, echoes, strict=True)]
            return await asyncio.gather(*(worker.run(batch.id) for worker in workers))

        ended = asyncio.run(all_of_them())
    assert {each.status for each in ended} == {"completed"}
    check(input, 400)
    asked = Counter(each["prompt"] for echo in echoes for each in echo.asked)
    assert len(asked) == 400
    assert set(asked.values()) == {1}
    assert all(len(echo.asked) > 40 for echo in echoes), "each has its part"


def test_what_begins_alike_is_claimed_together(postgres: str, tmp_path: Path) -> None:
    texts = [f"{n % 4} " * 64 + f"{n}" for n in range(256)]
    input = write(tmp_path / "in.jsonl", (line(f"line-{n}", prompt=t) for n, t in enumerate(texts)))
    with opened(postgres, tmp_path, 2) as stores:
        batch = entered(stores[0], input)
        echoes = [Echo(0.001), Echo(0.001)]

        async def both() -> None:
            workers = [runner(*pair) for pair in zip(stores, echoes, strict=True)]
            await asyncio.gather(*(worker.run(batch.id) for worker in workers))

        asyncio.run(both())
    for echo in echoes:
        begins = [each["prompt"][:2] for each in echo.asked]
        changes = sum(one != other for one, other in pairwise(begins))
        assert changes < len(begins) / 4


def test_a_worker_that_stops_leaves_its_lines_to_others_at_once(
    postgres: str, tmp_path: Path
) -> None:
    input = many(tmp_path / "in.jsonl", 100)
    with opened(postgres, tmp_path, 2) as (first, second):
        batch = entered(first, input)
        held, echo = Echo(most=10), Echo()

        async def hand_over() -> Batch:
            one = runner(first, held)
            asking = asyncio.create_task(one.run(batch.id))
            while len(held.asked) < 18:
                await asyncio.sleep(0.005)
            one.stop()
            await asking
            return await runner(second, echo).run(batch.id)

        assert asyncio.run(hand_over()).done == 100
    check(input, 100)
    assert len(echo.asked) == 90


def test_a_batch_that_one_worker_cancels_ends_once_the_others_have_kept_what_they_had(
    postgres: str, tmp_path: Path
) -> None:
    input = many(tmp_path / "in.jsonl", 200)
    with opened(postgres, tmp_path, 2) as (first, second):
        batch = entered(first, input)
        echo = Echo(0.01)

        async def cancelled() -> list[Batch]:
            one, other = runner(first, echo), runner(second, echo)
            both = asyncio.gather(one.run(batch.id), other.run(batch.id))
            while len(echo.asked) < 60:
                await asyncio.sleep(0.005)
            await other.end(batch.id, "cancelled")
            return await both

        ended = asyncio.run(cancelled())
    assert {each.status for each in ended} == {"cancelled"}
    good, bad = results(input)
    assert (len(good), len(bad)) == (ended[0].done, 200 - ended[0].done)
    assert ended[0].done >= 40
    assert {each["error"]["code"] for each in bad} == {"batch_cancelled"}


def test_an_answer_of_a_worker_that_was_given_up_is_not_kept(postgres: str, tmp_path: Path) -> None:
    """Its connection is lost while it asks; another takes its lines, and it goes on."""
    input = many(tmp_path / "in.jsonl", 20)
    with opened(postgres, tmp_path, 2) as (lost, other):
        batch = entered(lost, input)
        held, echo = Echo(most=0), Echo()

        async def lose() -> Batch:
            asking = asyncio.create_task(runner(lost, held).run(batch.id))
            while len(held.asked) < 5:
                await asyncio.sleep(0.005)
            number = lost.database.worker
            other.database.sql.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE objid = ? AND classid = ?",
                (number, lost.database._locks.workers),  # type: ignore[attr-defined]
            )
            with pytest.raises(OSError, match="database"):
                await asking
            found = await runner(other, echo).run(batch.id)
            assert lost.database.take("anything"), "it has a new connection"
            assert lost.database.worker != number
            return found

        assert asyncio.run(lose()).done == 20
    check(input, 20)
    assert len(echo.asked) == 20


def test_the_locks_of_a_worker_that_is_killed_are_free_at_once(
    postgres: str, tmp_path: Path
) -> None:
    input = many(tmp_path / "in.jsonl", 50)
    with opened(postgres, tmp_path) as (store,):
        batch = entered(store, input)
        worker = begun(postgres, tmp_path, 100)
        try:
            while len(store.database.living()) < 2 or not store.work.elsewhere(batch):
                time.sleep(0.01)
            os.kill(worker.pid, signal.SIGKILL)
            worker.wait()
            killed = time.monotonic()
            while store.work.elsewhere(batch):
                time.sleep(0.005)
            assert time.monotonic() - killed < 5
        finally:
            worker.kill()
            worker.wait()


def test_folders_in_one_database_know_nothing_of_each_other(postgres: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with opened(postgres, tmp_path / "one") as (one,), opened(postgres, tmp_path / "two") as (two,):
        batch = entered(one, many(tmp_path / "one" / "in.jsonl", 3))
        assert two.batches.get(batch.id) is None
        assert two.batches.open() == []
        assert one.database.take("work")
        assert two.database.take("work")


def test_a_folder_is_kept_by_sqlite_or_by_postgres_and_not_by_both(
    postgres: str, tmp_path: Path
) -> None:
    Store(tmp_path / "a" / "state").close()
    with pytest.raises(ConfigError, match="SQLite keeps"):
        Store(tmp_path / "a" / "state", url=postgres)
    with opened(postgres, tmp_path / "b"), pytest.raises(ConfigError, match="another process"):
        Store(tmp_path / "b" / "state")
    with pytest.raises(ConfigError, match="PostgreSQL keeps"):
        Store(tmp_path / "b" / "state")


def test_workers_that_come_at_once_make_the_tables_once(postgres: str, tmp_path: Path) -> None:
    found: list[Store] = []
    threads = [
        threading.Thread(target=lambda: found.append(Store(tmp_path / "state", url=postgres)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len({store.database.worker for store in found}) == 6
    for store in found:
        store.close()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("mysql://host/name", "no URL of PostgreSQL"),
        ("postgresql://[host/name", "cannot be read"),
        ("postgresql:///name?host=/nowhere", "cannot be used"),
    ],
)
def test_a_database_that_is_none_is_told_without_its_password(
    tmp_path: Path, url: str, why: str
) -> None:
    with pytest.raises(ConfigError, match=why) as told:
        Store(tmp_path / "state", url=url.replace("://", "://me:secret@", 1))
    assert "secret" not in str(told.value)


def test_one_of_several_servers_tells_of_a_batch_that_is_over(
    postgres: str, tmp_path: Path
) -> None:
    input = many(tmp_path / "in.jsonl", 40)
    with opened(postgres, tmp_path, 2, tells=True) as stores:
        batch = entered(stores[0], input)

        async def both() -> None:
            await asyncio.gather(*(runner(each, Echo()).run(batch.id) for each in stores))

        asyncio.run(both())
        with deliveries_of(tmp_path / "state", postgres) as deliveries:
            assert len(deliveries.due(9)) == 1
        assert [each.database.take("webhooks") for each in stores] == [True, False]
