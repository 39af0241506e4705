"""One request's answer, as a coroutine sees it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Self

from kvrt.errors import KvrtError, RequestError
from kvrt.outputs import Delta, Result


class Arrivals:
    """What has come of one request and was not taken yet. It belongs to the event loop.

    A slow taker finds the pieces of a completion as one. So nobody waits for it, and what is kept
    for it is never more than the answer itself, which has at most as many tokens as the context.
    """

    def __init__(self) -> None:
        self._pieces: dict[int, list[Delta]] = {}  # by completion
        self._waiter: asyncio.Future[None] | None = None
        self.result: Result | None = None
        self.whole = False
        """Only the result is of interest any more."""
        self.tokens = 0
        self.first: float | None = None

    def count(self, delta: Delta) -> None:
        """On the engine's thread: a piece was said, whoever takes it."""
        if self.first is None:
            self.first = time.monotonic()
        self.tokens += 0 if delta.again else len(delta.token_ids)

    def add(self, event: Delta | Result) -> None:
        if isinstance(event, Result):
            self.result = event
        elif not self.whole:
            self._pieces.setdefault(event.index, []).append(event)
        else:
            return
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for what comes; nobody else may."""
        return self._waiter is not None

    def take(self) -> Delta | None:
        """The oldest, with what has come of the same completion since, but for what is said again,
        which stays apart; None: there is nothing."""
        if not self._pieces:
            return None
        index = next(iter(self._pieces))
        pieces = self._pieces.pop(index)
        if pieces[0].again and len(pieces) > 1:
            self._pieces[index] = pieces[1:]
            return pieces[0]
        return _joined(pieces)

    def drop(self) -> None:
        """Nobody wants pieces any more."""
        self.whole = True
        self._pieces.clear()

    async def wait(self, timeout: float | None) -> None:
        """Until something more has come.

        Raises:
            TimeoutError: nothing did.
        """
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await self._waiter
        finally:
            self._waiter = None


class AsyncStream(AsyncIterator[Delta]):
    """The pieces of one request, as they come.

    One task takes from it at a time. Leaving it early aborts the request: by `aclose`, at the end
    of an ``async with``, when the task is cancelled that waits for it, or when nobody holds the
    stream any more.

    Args:
        request_id: the request's name.
        metadata: what came with it.
        prompt_token_ids: of its prompt.
        arrivals: where its pieces come.
        timeout: seconds, at most, between two pieces, or before the first.
        abort: ends the request if it still lives; may be called anywhere, at any time.
    """

    def __init__(
        self,
        request_id: str,
        metadata: Any,
        prompt_token_ids: Sequence[int],
        arrivals: Arrivals,
        timeout: float | None,
        abort: Callable[[], None],
    ) -> None:
        self.request_id = request_id
        self.metadata = metadata
        self.prompt_token_ids = prompt_token_ids
        self.seed = 0
        """Of completion 0, whether it was given or drawn."""
        self._arrivals = arrivals
        self._timeout = timeout
        self._abort = abort

    @property
    def cached_tokens(self) -> int:
        """How many of the prompt were not computed; 0 until the request has ended."""
        result = self._arrivals.result
        return 0 if result is None else result.usage.cached_tokens

    @property
    def tokens(self) -> int:
        """How many were said here so far, taken or not."""
        return self._arrivals.tokens

    @property
    def first(self) -> float | None:
        """When the first was, by ``time.monotonic``."""
        return self._arrivals.first

    async def wait(self) -> Result:
        """The whole, once the request has ended; pieces not taken yet are skipped.

        Raises:
            TimeoutError: it takes longer than the stream's timeout; the request is aborted.
            RequestError: another task waits for the stream; that changes nothing for it.
        """
        self._check_free()
        self._arrivals.drop()
        while (result := self._arrivals.result) is None:
            await self._more()
        return result

    async def result(self) -> Result:
        """Like `wait`, but raises the request's error if it ended with one."""
        return _sound(await self.wait())

    async def __anext__(self) -> Delta:
        self._check_free()
        while (delta := self._arrivals.take()) is None:
            if (result := self._arrivals.result) is not None:
                _sound(result)
                raise StopAsyncIteration
            await self._more()
        return delta

    def _check_free(self) -> None:
        if self._arrivals.awaited:
            raise RequestError(
                f"the stream of request {self.request_id} is waited for by another task",
                fix="take from a stream in one task, and hand on what it gives",
            )

    async def _more(self) -> None:
        try:
            await self._arrivals.wait(self._timeout)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Abort the request unless it has ended. Does not wait for that."""
        if self._arrivals.result is None:
            self._arrivals.drop()
            self._abort()

    async def aclose(self) -> None:
        """As `close`; for ``contextlib.aclosing``."""
        self.close()

    def __del__(self) -> None:
        self._arrivals.whole = True
        if self._arrivals.result is None:
            self._abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _sound(result: Result) -> Result:
    if isinstance(result.error, KvrtError):
        raise result.error
    return result


def _joined(deltas: list[Delta]) -> Delta:
    """Pieces of one completion, in order, as one."""
    if len(deltas) == 1:
        return deltas[0]
    logprobs = None
    if any(delta.logprobs is not None for delta in deltas):
        logprobs = tuple(entry for delta in deltas for entry in delta.logprobs or ())
    return Delta(
        deltas[0].index,
        "".join(delta.text for delta in deltas),
        tuple(token for delta in deltas for token in delta.token_ids),
        deltas[-1].finish_reason,
        logprobs,
    )
