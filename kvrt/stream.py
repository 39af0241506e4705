"""One request's answer, as its caller sees it."""

import queue
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from kvrt.engine.process import Process
from kvrt.outputs import Delta, Result


class Inbox:
    """Where the engine leaves what becomes of one request. It holds this, and never the stream: so
    a stream that nobody holds is gone."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Delta | Result] = queue.SimpleQueue()
        self.whole = False
        """Only the result is of interest any more."""

    def deliver(self, event: Delta | Result) -> None:
        """Called by the engine, from its thread: each piece, and the result last."""
        # Waking a caller who does not look at the pieces would take a processor from the kernels.
        if not self.whole or isinstance(event, Result):
            self._events.put(event)

    def take(self) -> Delta | Result:
        """The next of them; waits for it."""
        return self._events.get()


class Stream(Iterator[Delta]):
    """The pieces of one request, as they come.

    Leaving it early aborts the request: by `close`, at the end of a `with`, or when nobody holds
    the stream any more, as behind a `for` that ended by `break`.

    with runtime.stream("Once upon") as stream:
        for delta in stream:
            print(delta.text, end="")
    stream.result.usage

    Args:
        request_id: the request's name.
        inbox: where its pieces come.
        abort: ends the request if it still lives; may be called anywhere, at any time.
    """

    def __init__(self, request_id: str, inbox: Inbox, abort: Callable[[], None]) -> None:
        self.request_id = request_id
        self.seed = 0
        """Of completion 0, whether it was given or drawn."""
        self._inbox = inbox
        self._abort = abort
        self._process = Process()
        self._result: Result | None = None

    def wait(self) -> Result:
        """The whole, once the request has ended; pieces not taken yet are skipped.

        Raises:
            KvrtError: it is asked in a forked child, where the engine is not.
        """
        self._inbox.whole = True
        while self._result is None:
            self._next_event()
        return self._result

    @property
    def result(self) -> Result:
        """Like `wait`, but raises the request's error if it ended with one."""
        result = self.wait()
        if result.error is not None:
            raise result.error
        return result

    def __next__(self) -> Delta:
        if self._result is None and (delta := self._next_event()) is not None:
            return delta
        if (error := self.wait().error) is not None:
            raise error
        raise StopIteration

    def _next_event(self) -> Delta | None:
        self._process.check()
        event = self._inbox.take()
        if isinstance(event, Delta):
            return event
        self._result = event
        return None

    def close(self) -> None:
        """Abort the request unless it has ended."""
        if self._result is None:
            self._abort()

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
