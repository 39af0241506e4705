"""A few threads that do what is queued, urgent things first."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

log = logging.getLogger(__name__)


class Job:
    """A ticket (`kvrt.spi.Ticket`) for something that a thread will do.

    Args:
        work: does it, and returns whether it succeeded; given the job itself.
    """

    def __init__(self, work: "Callable[[Job], bool]") -> None:
        self._work: Callable[[Job], bool] | None = work
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

    def run(self) -> None:
        """For the thread that does it. Never raises."""
        work, self._work = self._work, None
        try:
            self._ok = work is not None and work(self)
        except Exception:
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

    Args:
        threads: how many.
        name: of the threads, for debuggers.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._urgent: deque[Job] = deque()
        self._later: deque[Job] = deque()
        self._calls: SimpleQueue[None] = SimpleQueue()  # one for each job, and to end each thread
        self._mutex = threading.Lock()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._serve, name=f"{name}-{n}", daemon=True)
            for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        """Jobs that have not begun."""
        return len(self._urgent) + len(self._later)

    def submit(self, job: Job, *, urgent: bool) -> None:
        """Queue a job. After `close` it is dropped."""
        with self._mutex:
            closed = self._closed
            if not closed:
                (self._urgent if urgent else self._later).append(job)
        if closed:
            job.drop()
        else:
            self._calls.put(None)

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

    def close(self, timeout: float) -> bool:
        """Do what is queued, for `timeout` seconds at most; drop the rest.

        Returns:
            Whether all threads have ended; one may still hang in the system.
        """
        deadline = time.monotonic() + timeout
        with self._mutex:
            self._closed = True
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._mutex:
            rest = [*self._urgent, *self._later]
            self._urgent.clear()
            self._later.clear()
        for job in rest:
            job.drop()
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _serve(self) -> None:
        while True:
            self._calls.get()
            with self._mutex:
                queue = self._urgent or self._later
                job = queue.popleft() if queue else None
                closed = self._closed
            if job is not None:
                job.run()
            elif closed:
                return
            job = None  # not kept alive while waiting for the next one
