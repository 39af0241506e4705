"""A few threads that do what is queued, urgent things first."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue

log = logging.getLogger(__name__)

IDLE_S = 10.0
"""A thread that has had nothing to do for so long ends."""


class Job:
    """A ticket (`kvrt.spi.Ticket`) for something that a thread will do.

    Args:
        work: does it, and returns whether it succeeded; given the job itself.
    """

    def __init__(self, work: "Callable[[Job], bool]") -> None:
        self._work: Callable[[Job], bool] | None = work
        self._began = math.inf  # seconds of the monotonic clock
        self._running = threading.Lock()  # held until it is done: a tenth of the cost of an Event
        self._running.acquire()
        self._done = self._ok = False

    @property
    def ok(self) -> bool:
        """Whether it was done with success; false as long as it is not done."""
        return self._ok

    def done(self) -> bool:
        return self._done

    def wait(self, timeout: float | None = None) -> bool:
        if not self._done and self._running.acquire(timeout=-1 if timeout is None else timeout):
            self._running.release()
        return self._done

    def runs_longer_than(self, seconds: float) -> bool:
        """Whether it has begun, so long ago, and is not done."""
        return not self._done and time.monotonic() - self._began > seconds

    def run(self) -> None:
        """For the thread that does it. Never raises."""
        self._began = time.monotonic()
        work, self._work = self._work, None
        try:
            self._ok = work is not None and work(self)
        except Exception:  # the thread has other jobs to do, and somebody waits for this one
            log.exception("a job of %s failed; this is a bug", threading.current_thread().name)
        finally:
            del work  # and with it the buffers it has
            self._finish()

    def drop(self) -> None:
        """Done, without success and without having begun."""
        self._work = None
        self._finish()

    def _finish(self) -> None:
        self._done = True
        self._running.release()


class Workers:
    """Threads that end with the process, whatever they are doing.

    They are started as jobs come, and end when there was nothing to do for `IDLE_S`: so many
    stores that are hardly used cost no threads.

    Args:
        threads: how many at most.
        name: of the threads, for debuggers.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._most = threads
        self._name = name
        self._urgent: deque[Job] = deque()
        self._later: deque[Job] = deque()
        self._calls: SimpleQueue[None] = SimpleQueue()  # one for each job, and to end each thread
        self._mutex = threading.Lock()
        self._closed = False
        self._idle = 0  # threads that wait for a call
        self._threads: list[threading.Thread] = []
        self._running: list[Job] = []

    def __len__(self) -> int:
        """Jobs that have not begun."""
        return len(self._urgent) + len(self._later)

    def stuck(self, seconds: float) -> int:
        """How many jobs began longer ago than that, and are not done."""
        return sum(job.runs_longer_than(seconds) for job in tuple(self._running))

    def submit(self, job: Job, *, urgent: bool) -> bool:
        """Queue a job. After `close`, or where the system has no thread, it is dropped; then this
        is false."""
        with self._mutex:
            taken = not self._closed
            if taken:
                (self._urgent if urgent else self._later).append(job)
                if len(self) > self._idle and len(self._threads) < self._most:
                    taken = self._start() or bool(self._threads)
        if taken:
            self._calls.put(None)
        elif not self.withdraw(job):
            job.drop()
        return taken

    def _start(self) -> bool:
        """One thread more; false if the system has none. With the mutex held."""
        thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            log.debug("%s has %d threads and no more: %s", self._name, len(self._threads), error)
            return False
        self._threads.append(thread)
        return True

    def withdraw(self, job: Job) -> bool:
        """Drop a job, unless it has begun. Returns whether it is dropped."""
        with self._mutex:
            for queue in (self._urgent, self._later):
                if job in queue:
                    queue.remove(job)
                    break
            else:
                return False
        job.drop()
        return True

    def drop_all(self) -> list[Job]:
        """Drop all jobs that have not begun, and return them."""
        with self._mutex:
            rest = [*self._urgent, *self._later]
            self._urgent.clear()
            self._later.clear()
        for job in rest:
            job.drop()
        return rest

    def close(self, timeout: float) -> bool:
        """Do what is queued, for `timeout` seconds at most; drop the rest.

        Returns:
            Whether all threads have ended; one may still hang in the system.
        """
        deadline = time.monotonic() + timeout
        with self._mutex:
            self._closed = True
            threads = list(self._threads)
        for _ in threads:
            self._calls.put(None)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self.drop_all()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _serve(self) -> None:
        while True:
            job, ends = self._next()
            if job is not None:
                job.run()
                with self._mutex:
                    self._running.remove(job)
            elif ends:
                return
            job = None  # not kept alive while waiting for the next one

    def _next(self) -> tuple[Job | None, bool]:
        """What to do next, if anything; and whether the thread is to end."""
        with self._mutex:
            self._idle += 1
        called = True
        try:
            self._calls.get(timeout=IDLE_S)
        except Empty:
            called = False
        with self._mutex:
            self._idle -= 1
            queue = self._urgent or self._later
            job = queue.popleft() if queue else None
            if job is not None:
                self._running.append(job)
            ends = job is None and (self._closed or not called)
            if ends:
                self._threads.remove(threading.current_thread())
        return job, ends
