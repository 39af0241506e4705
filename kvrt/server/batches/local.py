"""One batch without a server: a file of this machine in, a file out, going on where it stood."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from kvrt.aio.runtime import AsyncRuntime
from kvrt.batches import lines
from kvrt.batches.places import Places
from kvrt.batches.run import Answer, Reply, Rules, Runner
from kvrt.batches.store import Store
from kvrt.batches.words import Batch, Kind
from kvrt.errors import ConfigError
from kvrt.server.access.limits import UNLIMITED
from kvrt.server.batches.answering import EMBEDDINGS, URLS, LineAnswers
from kvrt.server.config import ANY_NAME, ServerConfig
from kvrt.server.errors import Refusal
from kvrt.server.openai.embeddings import Embeddings
from kvrt.server.openai.errors import refused
from kvrt.server.served import Served
from kvrt.server.tenants.accounts import Accounts

if TYPE_CHECKING:
    from kvrt.embedding.embedder import Embedder
    from kvrt.runtime import Runtime

LONGEST = 256 << 20
"""Bytes of a line, at most."""

ENTERING = "entering"

AHEAD = 2
"""Lines that are asked at once, in multiples of the sequences that run together: enough that there
is always one to follow."""

T = TypeVar("T")
OpenRuntime = Callable[[str], "AbstractContextManager[Runtime]"]
OpenEmbedder = Callable[[str], "AbstractContextManager[Embedder]"]


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done.

    Args:
        input, output, errors: files.
        state: a folder for what is between them.
        model: answers all lines; None: each line's own does.
        embed_model: likewise, of lines that want vectors.
        alias: names of `model` besides its own.
        template: a chat template for it.
        seconds: lines are asked for so long; None: as long as it takes.
        retry: lines that have failed are asked again.
        restart: nothing of before counts.
        database: keeps `state` for several workers; see `kvrt.batches.postgres`.
    """

    input: Path
    output: Path
    errors: Path
    state: Path
    model: str | None = None
    embed_model: str | None = None
    alias: tuple[str, ...] = ()
    template: str | None = None
    seconds: int | None = None
    retry: bool = False
    restart: bool = False
    database: str | None = None


def entered(store: Store, job: Job) -> Batch:
    """The batch of a job, new or as it stands.

    Raises:
        ConfigError: the folder has one of another input, the output would be written over, or
            others work on what is to be begun anew.
        OSError: the database does not answer.
    """
    while not store.database.take(ENTERING):  # workers that begin at once enter one batch
        time.sleep(0.05)
    try:
        return _entered(store, job)
    finally:
        store.database.give(ENTERING)


def _entered(store: Store, job: Job) -> Batch:
    batches = store.batches
    found = batches.page("", None, 1)
    if found and job.restart and not found[0].over and len(store.database.living()) > 1:
        raise ConfigError(
            f"{job.state}: others work on this batch",
            fix="stop them, or help them: leave out --restart",
        )
    if found and (job.restart or found[0].status == "failed"):
        batches.remove(found[0])
        store.work.drop_journal(found[0])
        found = []
    if not found:
        if job.output.exists() and not job.restart:
            raise ConfigError(
                f"{job.output} is there already, and {job.state} does not say of what",
                fix="name another with -o, or write over it with --restart",
            )
        outputs = (str(job.output), str(job.errors))
        return batches.create("", "", str(job.input), outputs, seconds=job.seconds)
    batch = found[0]
    if batch.fingerprint and batch.fingerprint != lines.fingerprint(job.input):
        raise ConfigError(
            f"{job.state} is of another input than {job.input}",
            fix="name another output with -o, or begin anew with --restart",
        )
    if not batch.over:
        return batch
    if batch.left or (batch.failed and job.retry):
        batches.reopen(batch, job.seconds)
    elif not job.output.exists():
        raise ConfigError(
            f"{job.state} says that {job.output} was made, and it is gone",
            fix="begin anew with --restart",
        )
    return batches.page("", None, 1)[0]


class Models:
    """What answers lines, loaded when the first one asks for it; one at a time.

    Args:
        job: says which.
        open_runtime, open_embedder: load one by its name.
    """

    def __init__(self, job: Job, open_runtime: OpenRuntime, open_embedder: OpenEmbedder) -> None:
        self._job = job
        self._open_runtime = open_runtime
        self._open_embedder = open_embedder
        self._stack = ExitStack()
        self._loaded: tuple[bool, str] | None = None
        self._answer: Answer = _no_model

    @asynccontextmanager
    async def answers(self, kind: Kind) -> AsyncIterator[Answer]:
        """For lines of a kind; the model stays loaded until another is wanted, or `close`."""
        vectors = kind.url == EMBEDDINGS
        name = (self._job.embed_model if vectors else self._job.model) or kind.model
        if not name:
            yield _no_model
            return
        if self._loaded != (vectors, name):
            await self.close()
            load = self._load_embedder if vectors else self._load_model
            self._answer = await load(name, kind.model)
            self._loaded = (vectors, name)
        yield self._answer

    async def _load_embedder(self, name: str, called: str) -> Answer:
        embedder = await self._enter(self._open_embedder(name))
        known = ANY_NAME in self._job.alias or self._job.embed_model is None
        vectors = Embeddings(embedder, strict=False, any_name=known)
        return LineAnswers(None, None, vectors, Accounts(UNLIMITED))

    async def _load_model(self, name: str, called: str) -> Answer:
        runtime = await self._enter(self._open_runtime(name))
        alias = self._job.alias if self._job.model is not None else (*self._job.alias, called)
        served = Served(runtime.model, ServerConfig(alias=alias), self._job.template)
        none = Embeddings(None, strict=False, any_name=False)
        return LineAnswers(AsyncRuntime(runtime), served, none, Accounts(UNLIMITED))

    async def _enter(self, opened: AbstractContextManager[T]) -> T:
        return await asyncio.to_thread(self._stack.enter_context, opened)

    async def close(self) -> None:
        """Nothing is loaded any more."""
        self._loaded, self._answer = None, _no_model
        await asyncio.to_thread(self._stack.close)


async def _no_model(url: str, body: bytes, owner: str) -> Reply:
    refusal = Refusal(400, "model is missing", param="model")
    return Reply(refusal.status, msgspec.json.encode(refused(refusal)))


def runner(store: Store, models: Models, at_once: int, watch: Callable[[Batch], None]) -> Runner:
    """What works on the batch.

    Args:
        at_once: sequences that run together.
        watch: told where it stands, after each commit.
    """
    rules = Rules(URLS, LONGEST)
    places = Places(lambda: AHEAD * at_once)
    return Runner(store, rules, models.answers, places, Path, listed=False, watch=watch)
