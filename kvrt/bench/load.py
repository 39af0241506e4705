"""Asks, and notes when each piece of an answer came.

clients   a closed loop: so many clients, each of which asks when its last answer has ended
offsets   an open loop: conversations begin when they are due, however many there are then
"""

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from kvrt.bench.data import Scale, Talk, words
from kvrt.bench.targets import Heard, Said, Target
from kvrt.bench.words import CUT, Held, Record
from kvrt.errors import KvrtError

LOOK_S = 0.25
"""Between two looks at the target's memory."""

PROBES = (16, 144)
"""Words of the texts that tell how many tokens a word is."""


@dataclass(slots=True)
class Load:
    """How to ask.

    Args:
        clients: of a closed loop; 0: it is an open one.
        offsets: when each conversation of an open loop is due, in seconds.
        requests: to send, at most; conversations that have begun are not cut short for it, but
            none is begun beyond.
        seconds: to begin conversations for, at most.
    """

    clients: int = 0
    offsets: Iterator[float] = field(default_factory=lambda: iter(()))
    requests: int | None = None
    seconds: float | None = None


@dataclass(slots=True)
class Measured:
    """What came of it."""

    records: list[Record] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    held_why: str | None = None
    seconds: float = 0.0
    cut: bool = False


class Asking:
    """One run: asks a target for talks, until all are answered, the load ends or `stop` is called.

    Args:
        told: is called with each request that has ended.
    """

    def __init__(
        self,
        target: Target,
        talks: Iterator[Talk],
        load: Load,
        told: Callable[[Record], None] = lambda record: None,
    ) -> None:
        self._target = target
        self._talks = enumerate(talks)
        self._load = load
        self._told = told
        self._measured = Measured()
        self._begun = 0.0
        self._asked = 0
        self._tasks: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """Ask no more: what has not ended counts as cut, and what has is kept."""
        self._measured.cut = True
        if self._tasks is not None:
            self._tasks.cancel()

    async def measure(self) -> Measured:
        """All of it."""
        found = self._measured
        self._begun = time.perf_counter()
        looking = asyncio.create_task(self._look())
        self._tasks = asyncio.create_task(self._closed() if self._load.clients else self._open())
        if found.cut:  # it was stopped before it began
            self._tasks.cancel()
        try:
            await self._tasks
        except asyncio.CancelledError:
            if not found.cut:
                raise
        finally:
            looking.cancel()
            with suppress(asyncio.CancelledError):
                await looking
        found.records.sort(key=lambda each: (each.sent, each.talk))
        sent = [each.sent for each in found.records]
        ends = [each.end for each in found.records if each.good]
        found.seconds = max(ends) - min(sent) if ends else 0.0
        return found

    # --- loops -------------------------------------------------------------------------------

    async def _closed(self) -> None:
        async def client() -> None:
            while (begun := self._next()) is not None:
                await self._talk(*begun, self._now())

        async with asyncio.TaskGroup() as group:
            for _ in range(self._load.clients):
                group.create_task(client())

    async def _open(self) -> None:
        async with asyncio.TaskGroup() as group:
            for due in self._load.offsets:
                if self._over(due):
                    break
                await asyncio.sleep(due - self._now())
                if (begun := self._next()) is None:
                    break
                group.create_task(self._talk(*begun, due))

    def _next(self) -> tuple[int, Talk] | None:
        """The next conversation to begin; None: there is none."""
        if self._over(self._now()):
            return None
        begun = next(self._talks, None)
        if begun is not None:
            self._asked += len(begun[1].turns)
        return begun

    def _over(self, now: float) -> bool:
        load = self._load
        if load.requests is not None and self._asked >= load.requests:
            return True
        return load.seconds is not None and now >= load.seconds

    def _now(self) -> float:
        return time.perf_counter() - self._begun

    # --- requests ----------------------------------------------------------------------------

    async def _talk(self, number: int, talk: Talk, due: float) -> None:
        said = opening(talk)
        for turn, each in enumerate(talk.turns):
            said.append(Said("user", each.text))
            heard = Heard()
            record = await self._request(number, turn, said, each.new, heard, due)
            if not record.good:
                return  # what would come next follows from an answer that there is not
            said.append(Said("assistant", heard.text))
            due = record.end

    async def _request(
        self, talk: int, turn: int, said: list[Said], new: int, heard: Heard, due: float
    ) -> Record:
        error = CUT
        try:
            await self._target.ask(said, new, heard)
            error = "" if heard.pieces else "an answer without text"
        except KvrtError as refused:
            error = str(refused)
        except TimeoutError:
            error = "nothing came for too long"
        finally:
            end = time.perf_counter()
            sent = heard.sent or end
            record = Record(
                talk=talk,
                turn=turn,
                due=due,
                sent=sent - self._begun,
                end=end - self._begun,
                pieces=tuple(each - sent for each in heard.pieces),
                prompt_tokens=heard.prompt_tokens,
                cached_tokens=heard.cached_tokens,
                output_tokens=heard.output_tokens,
                finish=heard.finish,
                error=error or None,
            )
            self._measured.records.append(record)
            self._told(record)
        return record

    async def _look(self) -> None:
        """Look at the target's memory now and then, until it does not say."""
        while True:
            try:
                self._measured.held.append(await self._target.look(self._now()))
            except KvrtError as error:
                self._measured.held_why = str(error)
                return
            await asyncio.sleep(LOOK_S)


def opening(talk: Talk) -> list[Said]:
    """What stands before the first turn."""
    return [Said("system", talk.system)] if talk.system else []


async def calibrated(target: Target) -> Scale | None:
    """How many tokens of the target a word is; None: it does not count them.

    Raises:
        KvrtError: it cannot be asked.
    """
    counts = []
    for number in PROBES:
        heard = Heard()
        text = words(number, random.Random(number))
        await target.ask([Said("user", text)], 1, heard)
        if heard.prompt_tokens is None:
            return None
        counts.append(heard.prompt_tokens)
    per_word = (counts[1] - counts[0]) / (PROBES[1] - PROBES[0])
    if per_word <= 0:
        return None
    return Scale(per_word, max(0.0, counts[0] - per_word * PROBES[0]))


async def warmed(target: Target, talks: Iterator[Talk], count: int, clients: int) -> None:
    """Ask talks' first turns for one token each, which counts for nothing.

    Raises:
        KvrtError: one of them is refused.
    """
    places = asyncio.Semaphore(clients)

    async def one(talk: Talk) -> None:
        async with places:
            said = [*opening(talk), Said("user", talk.turns[0].text)]
            await target.ask(said, 1, Heard())

    await asyncio.gather(*map(one, itertools.islice(talks, count)))
