"""Threads that do what is queued."""

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from kvrt.kv.tiers.workers import Job, Workers


class Gate:
    """Work that waits until it is let go, and keeps account of when it began."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.open = threading.Event()

    def job(self, name: str, *, ok: bool = True) -> Job:
        def work(job: Job) -> bool:
            self.begun.append(name)
            return self.open.wait(20) and ok

        return Job(work)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def named(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_urgent_jobs_go_first_and_others_in_their_order(gate: Gate) -> None:
    workers = Workers(1, "one")
    jobs = {name: gate.job(name) for name in ("first", "a", "b", "urgent a", "urgent b")}
    for name, job in jobs.items():
        assert workers.submit(job, urgent=name.startswith("urgent"))
        until(lambda: bool(gate.begun))  # the first has begun before the others come
    assert len(workers) == 4
    assert not any(job.done() or job.ok for job in jobs.values())
    assert not jobs["first"].wait(0.0)
    gate.open.set()
    assert all(job.wait(20) and job.ok for job in jobs.values())
    assert gate.begun == ["first", "urgent a", "urgent b", "a", "b"]
    assert workers.close(20)


def test_there_are_as_many_threads_as_there_is_work_for_and_no_more(gate: Gate) -> None:
    workers = Workers(3, "three")
    assert named("three") == []
    for count in range(1, 6):
        workers.submit(gate.job("job"), urgent=False)
        assert len(named("three")) == min(count, 3)
    until(lambda: len(gate.begun) == 3)
    gate.open.set()
    until(lambda: len(gate.begun) == 5)
    last = gate.job("last")
    until(lambda: workers._idle == 3)
    workers.submit(last, urgent=False)
    assert last.wait(20)
    assert len(named("three")) == 3, "one that was idle did it"
    assert workers.close(20)
    assert named("three") == []


def test_a_thread_that_was_idle_for_long_ends_and_another_comes_when_there_is_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kvrt.kv.tiers.workers.IDLE_S", 0.01)
    workers = Workers(2, "idle")
    for _ in range(3):
        job = Job(lambda job: True)
        workers.submit(job, urgent=False)
        assert job.wait(20)
        assert job.ok
        until(lambda: not named("idle"))
    assert workers.close(20)


def test_a_job_that_fails_is_done_without_success_and_the_thread_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(job: Job) -> bool:
        raise ValueError("no luck")

    workers = Workers(1, "bad")
    jobs = [Job(broken), Job(lambda job: False), Job(lambda job: True)]
    with caplog.at_level(logging.ERROR, "kvrt"):
        for job in jobs:
            workers.submit(job, urgent=False)
        assert all(job.wait(20) for job in jobs)
    assert [job.ok for job in jobs] == [False, False, True]
    assert "a job of bad failed" in caplog.text
    assert workers.close(20)


def test_what_a_job_holds_is_let_go_when_it_is_done_or_dropped() -> None:
    class Buffer:
        """Large."""

    workers = Workers(1, "held")
    for drop in (False, True):
        buffer = Buffer()
        job = Job(lambda job, held=buffer: bool(held))  # type: ignore[misc]
        gone = weakref.ref(buffer)
        del buffer
        if drop:
            job.drop()
        else:
            workers.submit(job, urgent=False)
        assert job.wait(20)
        assert job.ok != drop
        until(lambda gone=gone: gone() is None)  # type: ignore[misc]
    assert workers.close(20)


def test_what_has_not_begun_can_be_withdrawn_and_what_has_cannot(gate: Gate) -> None:
    workers = Workers(1, "some")
    jobs = [gate.job(name) for name in "abcde"]
    for job in jobs:
        workers.submit(job, urgent=job is jobs[4])
        until(lambda: bool(gate.begun))
    assert not workers.withdraw(jobs[0])
    assert workers.withdraw(jobs[2])
    assert not workers.withdraw(jobs[2])
    assert jobs[2].done()
    assert not jobs[2].ok
    assert workers.drop_all() == [jobs[4], jobs[1], jobs[3]]
    assert all(job.done() and not job.ok for job in jobs[1:])
    assert len(workers) == 0
    assert not jobs[0].done()
    gate.open.set()
    assert jobs[0].wait(20)
    assert gate.begun == ["a"]
    assert workers.close(20)


def test_a_job_that_hangs_is_counted_and_not_waited_for(gate: Gate) -> None:
    workers = Workers(2, "stuck")
    hanging, beside, waiting = (gate.job(name) for name in "abc")
    assert not hanging.runs_longer_than(0.0)
    for job in (hanging, beside, waiting):
        workers.submit(job, urgent=False)
    until(lambda: workers.stuck(0.01) == 2)
    assert workers.stuck(60.0) == 0
    assert hanging.runs_longer_than(0.01)
    assert not hanging.runs_longer_than(60.0)
    assert not waiting.runs_longer_than(0.0), "it has not begun"
    assert not workers.close(0.05)
    assert waiting.done()
    assert not waiting.ok
    gate.open.set()
    assert hanging.wait(20)
    assert not hanging.runs_longer_than(0.0)
    until(lambda: workers.stuck(0.0) == 0)
    assert workers.close(20)
    late = gate.job("late")
    assert not workers.submit(late, urgent=True)
    assert late.done()
    assert not late.ok


def test_a_system_without_threads_drops_what_nobody_could_do(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    alone, served = Workers(2, "none"), Workers(2, "few")
    assert served.submit(gate.job("first"), urgent=False)
    monkeypatch.setattr("threading.Thread.start", refuse)
    job, second = gate.job("job"), gate.job("second")
    assert not alone.submit(job, urgent=False)
    assert job.done()
    assert len(alone) == 0
    assert served.submit(second, urgent=False), "the thread there is will do it"
    gate.open.set()
    assert second.wait(20)
    assert second.ok
    assert alone.close(20)
    assert served.close(20)
