"""One request's answer, as its caller sees it."""

import queue
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from kvrt.outputs import Delta, Result


class Stream(Iterator[Delta]):
    """The pieces of one request, as they come. Leaving it early, or `close`, aborts the request.

    with runtime.stream("Once upon") as stream:
        for delta in stream:
            print(delta.text, end="")
    stream.result.usage
    """

    def __init__(self, request_id: str, abort: Callable[[str], None]) -> None:
        self.request_id = request_id
        self._abort = abort
        self._events: queue.SimpleQueue[Delta | Result] = queue.SimpleQueue()
        self._result: Result | None = None
        self._whole = False

    def deliver(self, event: Delta | Result) -> None:
        """Called by the engine, from its thread: each piece, and the result last."""
        # Waking a caller who does not look at the pieces would take a processor from the kernels.
        if not self._whole or isinstance(event, Result):
            self._events.put(event)

    def wait(self) -> Result:
        """The whole, once the request has ended; pieces not taken yet are skipped."""
        self._whole = True
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
        event = self._events.get()
        if isinstance(event, Delta):
            return event
        self._result = event
        return None

    def close(self) -> None:
        """Abort the request unless it has ended."""
        if self._result is None:
            self._abort(self.request_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
