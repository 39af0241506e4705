"""The one way in which all protocols ask the runtime."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kvrt.aio.runtime import TIMEOUT_S, AsyncRuntime
from kvrt.aio.stream import AsyncStream
from kvrt.errors import RequestError
from kvrt.outputs import Delta, Result
from kvrt.sampling import SamplingParams

if TYPE_CHECKING:
    from kvrt.engine.prompts import Prompt


@dataclass(frozen=True, slots=True)
class AskedAdapter:
    """An adapter that answers.

    Args:
        name: as it is loaded.
        number: tells it from others that had the name before.
    """

    name: str
    number: int


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt, and how it is to be answered.

    Args:
        held_by: the field of the request that constrains the answer.
        adapter: answers; None: the model as it is.
        said: tokens of the answer that another server has said; None: it begins here.
    """

    prompt: "Prompt"
    params: SamplingParams
    held_by: str = ""
    adapter: AskedAdapter | None = None
    said: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the answers to one call have come.

    Args:
        prompt_tokens: of all prompts.
        cached_tokens: of these, not computed, as far as it is known: of answers that are whole.
        generated_tokens: said so far.
        first: when the first of them was, by ``time.monotonic``; None: not yet.
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    first: float | None


class Stream(Protocol):
    """One answer, as it comes; see `AsyncStream`."""

    request_id: str

    @property
    def prompt_token_ids(self) -> Sequence[int]: ...

    @property
    def seed(self) -> int: ...

    @property
    def cached_tokens(self) -> int: ...

    @property
    def tokens(self) -> int: ...

    @property
    def first(self) -> float | None: ...

    def __aiter__(self) -> AsyncIterator[Delta]: ...

    async def __anext__(self) -> Delta: ...

    async def result(self) -> Result: ...

    def close(self) -> None: ...


class Answers:
    """The streams of one call, to be taken once: as pieces, or as a whole.

    Args:
        streams: in the order of what was asked.
        keep: told of all results, once there are.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        keep: Callable[[Sequence[Result]], None] | None = None,
    ) -> None:
        self._streams = streams
        self._keep = keep

    @property
    def prompts(self) -> list[Sequence[int]]:
        """The tokens of each."""
        return [stream.prompt_token_ids for stream in self._streams]

    @property
    def ids(self) -> list[str]:
        """By which the engine tells of each."""
        return [stream.request_id for stream in self._streams]

    @property
    def seed(self) -> int:
        """Of the first."""
        return self._streams[0].seed

    @property
    def progress(self) -> Progress:
        firsts = [stream.first for stream in self._streams if stream.first is not None]
        said = sum(stream.tokens for stream in self._streams)
        cached = sum(stream.cached_tokens for stream in self._streams)
        return Progress(sum(map(len, self.prompts)), cached, said, min(firsts, default=None))

    async def results(self) -> list[Result]:
        """All of them, once each has ended.

        Raises:
            KvrtError: one has failed; the others end, too.
        """
        try:
            results = [await stream.result() for stream in self._streams]
            if self._keep is not None:
                self._keep(results)
            return results
        finally:
            self.close()

    async def pieces(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """Each with the number of its prompt, as they come. Raises as `results`."""
        if len(self._streams) == 1:
            async for delta in self._streams[0]:
                yield 0, delta
            return
        # One piece of each stream is awaited at a time: what comes meanwhile, the stream joins.
        awaited = {asyncio.create_task(s.__anext__()): n for n, s in enumerate(self._streams)}
        try:
            while awaited:
                done, _ = await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    number = awaited.pop(task)
                    try:
                        delta = task.result()
                    except StopAsyncIteration:
                        continue
                    awaited[asyncio.create_task(self._streams[number].__anext__())] = number
                    yield number, delta
        finally:
            for task in awaited:
                task.cancel()
            self.close()

    def close(self) -> None:
        """Abort what has not ended."""
        for stream in self._streams:
            stream.close()


async def ask(
    runtime: AsyncRuntime,
    asks: Sequence[Ask],
    salt: str,
    keep: Callable[[Sequence[Result]], None] | None = None,
    *,
    priority: int = 0,
    timeout: float | None = TIMEOUT_S,
) -> Answers:
    """Ask for all; if one is refused, none is answered.

    Args:
        salt: with whose requests they may share KV pages.
        keep: see `Answers`.
        priority, timeout: see `AsyncRuntime.stream`.

    Raises:
        KvrtError: see `AsyncRuntime.stream`.
    """
    streams: list[AsyncStream] = []
    try:
        for each in asks:
            streams.append(await _stream(runtime, each, salt, priority, timeout))
    except BaseException:
        Answers(streams).close()
        raise
    return Answers(streams, keep)


async def _stream(
    runtime: AsyncRuntime, each: Ask, salt: str, priority: int, timeout: float | None
) -> AsyncStream:
    """What is wrong with a constraint is told by the name that the client knows it by."""
    try:
        return await runtime.stream(
            each.prompt,
            each.params,
            cache_salt=salt,
            priority=priority,
            metadata=salt,
            adapter=None if each.adapter is None else each.adapter.name,
            said=each.said or (),
            timeout=timeout,
        )
    except RequestError as error:
        if error.param != "constraint" or not each.held_by:
            raise
        raise RequestError(f"{each.held_by}: {error}", param=each.held_by, fix=error.fix) from None
