"""`AsyncRuntime`: a runtime for an event loop.

    async with await kvrt.AsyncRuntime.open("tiny") as runtime:
        async for delta in await runtime.stream("def add(a, b):"):
            print(delta.text, end="")

It asks the same engine as the `Runtime` in it, which may be asked at the same time.
"""

import asyncio
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kvrt.aio.hop import Hop
from kvrt.aio.stream import Arrivals, AsyncStream
from kvrt.checks import Checks, Maybe, Number, Of, check_options
from kvrt.config import RuntimeConfig
from kvrt.engine.intake import Wishes, request_of
from kvrt.engine.prompts import Prompt
from kvrt.engine.request import Request
from kvrt.engine.worker import CLOSE_TIMEOUT_S
from kvrt.errors import KvrtError
from kvrt.model.progress import Progress
from kvrt.outputs import Result
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

TIMEOUT_S = 600.0
"""Between two pieces of an answer, unless it is said otherwise."""

TIMEOUT: Checks = {"timeout": Maybe(Number(0, 1e9, above=True)), "runtime": Of((Runtime,))}

ENCODERS = 2
"""Threads that make prompts into tokens, beside the engine and the loop."""


class AsyncRuntime:
    """Asks a `Runtime` from coroutines, which wait without holding a thread.

    It belongs to the event loop that runs when it is made. Closing it closes the runtime.

    Args:
        runtime: to ask. What it offers besides, such as `Runtime.stats`, does not wait, or goes
            through `asyncio.to_thread`.
    """

    def __init__(self, runtime: Runtime) -> None:
        check_options(TIMEOUT, runtime=runtime)
        self.runtime = runtime
        self._worker = runtime._worker
        self._hop = Hop(asyncio.get_running_loop())
        self._worker.each_round(self._hop.leave)
        self._encoders = ThreadPoolExecutor(ENCODERS, "kvrt-encoder")
        # A constraint may take seconds to be refused, for which no other request shall wait.
        self._compilers = ThreadPoolExecutor(ENCODERS, "kvrt-compiler")
        self._closed = False

    @classmethod
    async def open(
        cls,
        model: str | Path | None = None,
        *,
        config: RuntimeConfig | None = None,
        progress: Progress | None = None,
        **options: object,
    ) -> Self:
        """As `Runtime(...)`, without keeping the loop waiting. If the wait is cancelled, the model
        is still loaded, and closed then."""
        make = functools.partial(Runtime, model, config=config, progress=progress, **options)
        return cls(await asyncio.to_thread(make))

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        timeout: float | None = TIMEOUT_S,
        **options: Any,
    ) -> Result:
        """The whole answer to one prompt; see `stream`. Several are asked by `asyncio.gather`.

        Args:
            timeout: seconds, at most, for all of it.

        Raises:
            KvrtError: the request is bad, or ended with an error.
            TimeoutError: it took longer, and is aborted.
        """
        return await (await self.stream(prompt, params, timeout=timeout, **options)).result()

    async def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
        private: bool = False,
        adapter: str | None = None,
        metadata: Any = None,
        said: Sequence[int] = (),
        timeout: float | None = TIMEOUT_S,
    ) -> AsyncStream:
        """Submit one prompt, and return its stream.

        Args:
            prompt, params, request_id, priority, cache_salt, private, adapter, metadata, said: see
                `Runtime.stream`.
            timeout: seconds, at most, between two pieces of the answer, the first included; None:
                as long as it takes.

        Raises:
            RequestError: the request is bad; nothing was queued.
            CapacityError: its prompt could never fit in the memory limit.
            KvrtError: the runtime has ended.
        """
        check_options(TIMEOUT, timeout=timeout)
        if self._closed:
            raise KvrtError("the runtime is closed")
        wishes = Wishes(
            params=params,
            request_id=request_id,
            priority=priority,
            cache_salt=cache_salt,
            private=private,
            adapter=adapter,
            metadata=metadata,
            said=said,
        )
        arrivals = Arrivals()
        request = await self._prepared(prompt, wishes, arrivals)
        number = self._worker.number()
        # The stream comes first: if anything interrupts the rest, it ends the request.
        abort = functools.partial(self._abort, number)
        stream = AsyncStream(request.id, metadata, request.prompt, arrivals, timeout, abort)
        stream.seed = request.seed
        self._worker.submit(number, request)
        return stream

    async def _prepared(self, prompt: Prompt, wishes: Wishes, arrivals: Arrivals) -> Request:
        """A long prompt takes a while to be made into tokens: the loop goes on meanwhile."""
        params = wishes.params
        constrained = isinstance(params, SamplingParams) and params.constraint is not None
        return await asyncio.get_running_loop().run_in_executor(
            self._compilers if constrained else self._encoders,
            request_of,
            self._worker,
            self.runtime.config,
            prompt,
            wishes,
            functools.partial(self._hop.put, arrivals),
        )

    def _abort(self, number: int) -> None:
        """A stream's way to end its request; through it, the stream keeps the runtime open."""
        self._worker.abort(number)

    def abort(self, request_id: str) -> None:
        """See `Runtime.abort`. Does not wait."""
        self.runtime.abort(request_id)

    async def close(self, timeout: float | None = CLOSE_TIMEOUT_S) -> None:
        """See `Runtime.close`. Streams end with reason ``abort``, or with an error."""
        self._closed = True
        self._encoders.shutdown(wait=False)
        self._compilers.shutdown(wait=False)
        await asyncio.to_thread(self.runtime.close, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
