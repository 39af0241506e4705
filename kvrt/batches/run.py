"""Works on a batch, from wherever it stands to its end."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol

from kvrt.batches import lines
from kvrt.batches.commits import Commits
from kvrt.batches.lines import MAX_PROBLEMS, Found
from kvrt.batches.outputs import Outputs, record
from kvrt.batches.places import Places
from kvrt.batches.store import Store
from kvrt.batches.words import NO_TOKENS, Answered, Batch, End, Kind, Line, Problem, Tokens

AT_ONCE = 512
"""Lines that are checked, or looked up, at once."""

DELAYS_S = (0.5, 2.0, 8.0)
"""A line that fails for no reason of its own is asked again after each of these."""

AGAIN = frozenset({429, 500, 502, 503, 504})
"""Statuses of that kind."""

LOOK_S = 1.0
"""How often the clock is looked at."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a line is answered with.

    Args:
        status: of HTTP.
        body: JSON.
    """

    status: int
    body: bytes
    tokens: Tokens = NO_TOKENS


class Answer(Protocol):
    """Answers lines."""

    async def __call__(self, url: str, body: bytes, owner: str) -> Reply:
        """Raises only if no line can be answered any more."""


Answers = Callable[[Kind], AbstractAsyncContextManager[Answer]]
"""What answers lines of one kind, as long as it is wanted."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a batch may be.

    Args:
        urls: that lines may ask.
        longest: bytes of a line.
        most: lines; None: as many as there are.
    """

    urls: tuple[str, ...]
    longest: int
    most: int | None = None


class Runner:
    """Works on batches of a store. Belongs to the event loop.

    Args:
        store: where they are.
        rules: what they may be.
        answers: what answers their lines.
        places: how many lines are asked at once.
        path: of a file, by its name.
        listed: files of outputs are listed in the store; else an output is made even if it is
            empty.
        watch: told where a batch stands, after each commit.
    """

    def __init__(
        self,
        store: Store,
        rules: Rules,
        answers: Answers,
        places: Places,
        path: Callable[[str], Path],
        *,
        listed: bool,
        watch: Callable[[Batch], None] = lambda batch: None,
    ) -> None:
        self._store = store
        self._rules = rules
        self._answers = answers
        self._places = places
        self._path = path
        self._listed = listed
        self._watch = watch
        self._stops: dict[str, asyncio.Event] = {}
        self._stopped = False

    def stop(self) -> None:
        """Ask no more: what is being asked is dropped, what was answered is kept."""
        self._stopped = True
        for event in self._stops.values():
            event.set()

    async def end(self, id: str, end: End) -> Batch | None:
        """Ask no more lines of a batch, which becomes `end`."""
        batch = await self._store.do(self._store.batches.end, id, end)
        if id in self._stops:
            self._stops[id].set()
        return batch

    async def run(self, id: str) -> Batch:
        """Until the batch is over, or until `stop`.

        Raises:
            OSError: what is to be kept cannot be. Begin again.
            KvrtError: lines cannot be answered any more.
        """
        stopped = self._stops[id] = asyncio.Event()
        if self._stopped:
            stopped.set()
        batch = await self._get(id)
        try:
            while not batch.over and not self._stopped:
                stopped.clear()
                await self._go_on(await self._get(id), stopped)
                batch = await self._get(id)
                self._watch(batch)
            return batch
        finally:
            del self._stops[id]
            await self._store.do(self._leave_to_others, batch)

    async def _go_on(self, batch: Batch, stopped: asyncio.Event) -> None:
        """Do what comes next, as far as it is this worker's to do."""
        if not batch.total:  # it may end before it was checked
            await self._alone(batch, self._check)
        elif batch.status == "in_progress":
            self._watch(batch)
            if await self._ask_all(batch, stopped):
                await self._store.do(self._store.batches.end, batch.id, "completed")
        elif await self._store.do(self._store.work.elsewhere, batch):
            await asyncio.sleep(LOOK_S)  # until others have kept what they were asking
        else:
            await self._alone(batch, self._finish)

    async def _alone(self, batch: Batch, do: Callable[[Batch], Awaitable[None]]) -> None:
        """Do it, unless another worker does, or has."""
        store = self._store
        if not await store.do(store.database.take, batch.id):
            await asyncio.sleep(LOOK_S)
            return
        try:
            now = await self._get(batch.id)
            if (now.status, now.total) == (batch.status, batch.total):
                await do(batch)
        finally:
            await store.do(store.database.give, batch.id)

    def _leave_to_others(self, batch: Batch) -> None:
        """On the store's thread."""
        self._store.work.let_go(batch)
        self._store.work.close_journal(batch)

    async def _get(self, id: str) -> Batch:
        batch = await self._store.do(self._store.batches.get, id)
        assert batch is not None, "it is removed only when it is over"
        return batch

    # --- checking --------------------------------------------------------------------------------

    async def _check(self, batch: Batch) -> None:
        """Enter its lines, or say what is wrong with them."""
        store, path = self._store, self._path(batch.input)
        await store.do(self._forget, batch)
        problems: list[Problem] = []
        total, kinds = 0, dict[tuple[str, str], int]()
        urls = (batch.endpoint,) if batch.endpoint else self._rules.urls
        try:
            file = path.open("rb")
        except OSError as error:
            problem = Problem("input_missing", f"the input cannot be read: {error.strerror}")
            await store.do(store.batches.fail, batch, [problem])
            return
        with file:
            reader = lines.read(file, urls, self._rules.longest)
            while len(problems) < MAX_PROBLEMS:
                some = await asyncio.to_thread(lambda: list(islice(reader, AT_ONCE)))
                if not some:
                    break
                problems += [each for each in some if isinstance(each, Problem)]
                found = [each for each in some if isinstance(each, Found)]
                total += len(found)
                if self._rules.most is not None and total > self._rules.most:
                    message = f"there are more lines than {self._rules.most}"
                    problems.append(Problem("too_many_tasks", message))
                    break
                if twice := await store.do(store.work.add, batch, kinds, found):
                    message = "custom_id: a line before has the same"
                    problems.append(Problem("duplicate_custom_id", message, twice, "custom_id"))
            if not total and not problems:
                problems.append(Problem("empty_file", "there is no line in it"))
            if problems:
                problems.sort(key=lambda each: each.line or 0)
                await store.do(store.batches.fail, batch, problems[:MAX_PROBLEMS])
                return
        fingerprint = await asyncio.to_thread(lines.fingerprint, path)
        await store.do(store.batches.begin, batch, total, fingerprint)

    def _forget(self, batch: Batch) -> None:
        """What a kill may have left of a check."""
        with self._store.database.transaction():
            self._store.batches.forget_lines(batch)

    # --- asking ----------------------------------------------------------------------------------

    async def _ask_all(self, batch: Batch, stopped: asyncio.Event) -> bool:
        """Ask all lines that wait. False: the batch was stopped before that."""
        asking = asyncio.create_task(self._ask_kinds(batch))
        ending = asyncio.create_task(stopped.wait())
        try:
            while not asking.done() and not stopped.is_set():
                await asyncio.wait(
                    {asking, ending}, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED
                )
                if batch.expires is not None and self._store.clock() >= batch.expires:
                    await self.end(batch.id, "expired")
                elif self._store.shared:
                    await self._look(batch.id, stopped)
        finally:
            ending.cancel()
            if not asking.done():
                asking.cancel()
            await asyncio.wait({asking})
        if asking.cancelled():
            # Others wait with the end until nobody asks lines any more, as this worker does.
            await self._store.do(self._store.work.let_go, batch)
            return False
        asking.result()
        return True

    async def _look(self, id: str, stopped: asyncio.Event) -> None:
        """What other workers have made of it."""
        batch = await self._get(id)
        self._watch(batch)
        if batch.status != "in_progress":
            stopped.set()

    async def _ask_kinds(self, batch: Batch) -> None:
        store, input = self._store, os.open(self._path(batch.input), os.O_RDONLY)
        try:
            while True:
                for kind in await store.do(store.work.kinds, batch):
                    async with self._answers(kind) as answer:
                        await self._ask_kind(batch, kind, input, answer)
                if not (await self._get(batch.id)).left:
                    return
                await asyncio.sleep(LOOK_S)  # others ask the rest; if they go, it is free again
        except ExceptionGroup as group:  # of all that failed for the same reason, the first
            raise _first(group) from None
        finally:
            os.close(input)

    async def _ask_kind(self, batch: Batch, kind: Kind, input: int, answer: Answer) -> None:
        async with (
            Commits(lambda answers: self._keep(batch, answers)) as commits,
            asyncio.TaskGroup() as asked,
        ):
            async for line in self._waiting(batch, kind):
                await self._places.enter(batch.owner, line.size, batch.rank)
                task = asked.create_task(self._ask(line, batch.owner, input, answer, commits))
                task.add_done_callback(partial(self._leave, batch.owner, line.size))

    def _leave(self, owner: str, nbytes: int, task: asyncio.Task[None]) -> None:
        """Whatever became of it, even if it never began."""
        self._places.leave(owner, nbytes)

    async def _waiting(self, batch: Batch, kind: Kind) -> AsyncIterator[Line]:
        """In order of work."""
        store, last = self._store, None
        while True:
            some = await store.do(store.work.waiting, batch, kind.number, last, AT_ONCE)
            for line in some:
                yield line
            if not some:
                return
            last = some[-1]

    async def _ask(
        self, line: Line, owner: str, input: int, answer: Answer, commits: Commits
    ) -> None:
        request = lines.REQUEST.decode(os.pread(input, line.size, line.at))
        body = bytes(request.body)
        reply = await answer(request.url, body, owner)
        for delay in DELAYS_S:
            if reply.status not in AGAIN:
                break
            await asyncio.sleep(delay)
            reply = await answer(request.url, body, owner)
        kept = record(request.custom_id, status=reply.status, body=reply.body)
        await commits.put(Answered(line, kept, reply.status < 300, reply.tokens))

    async def _keep(self, batch: Batch, answers: Sequence[Answered]) -> None:
        await self._store.do(self._store.work.record, batch, answers)
        self._watch(await self._get(batch.id))

    # --- the end ---------------------------------------------------------------------------------

    async def _finish(self, batch: Batch) -> None:
        store = self._store
        paths = [self._path(name) for name in (batch.input, batch.output, batch.errors)]
        with Outputs(store.work, batch, *paths, always=not self._listed) as outputs:
            while await store.do(outputs.step):
                pass
            sizes = await asyncio.to_thread(outputs.publish)
        await store.do(self._close, batch, sizes)

    def _close(self, batch: Batch, sizes: Sequence[int | None]) -> None:
        """On the store's thread: the batch is over, and its files are listed."""
        store = self._store
        with store.database.transaction():
            now = store.batches.get(batch.id)
            if now is None or now.over:
                return  # another worker has, who thought that this one was gone
            if self._listed:
                names = zip((batch.output, batch.errors), ("output", "error"), sizes, strict=True)
                for id, kind, size in names:
                    if size is not None:
                        name = f"{batch.id}_{kind}.jsonl"
                        store.files.add(
                            id, batch.owner, "batch_output", name, size, batch.files_expire
                        )
            store.batches.finish(batch)
        if batch.done == batch.total:
            store.work.drop_journal(batch)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
