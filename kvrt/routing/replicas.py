"""The servers that there are, and how each one is doing."""

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Literal
from urllib.parse import urlsplit

import httpx

from kvrt.errors import ConfigError
from kvrt.integrations.choosing import Candidate, Policy, choose, work
from kvrt.integrations.prefixes import Key, Prefixes
from kvrt.routing.listening import Listening

log = logging.getLogger(__name__)

State = Literal["new", "up", "down", "draining"]

LOOK_S = 1.0
"""A server is asked so often whether it is ready."""

LOOK_TIMEOUT_S = 5.0
NEW = 0.1
"""The part of a new measurement in a pace."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is.

    Args:
        url: of its root, ``http://HOST:PORT``.
        events: where it publishes what is cached, as ZeroMQ's address; None: nowhere.
        replay: where it answers who asks for earlier events; None: nowhere.
    """

    url: str
    events: str | None = None
    replay: str | None = None

    @staticmethod
    def read(text: str) -> "Address":
        """``URL``, ``URL,EVENTS`` or ``URL,EVENTS,REPLAY``.

        Raises:
            ConfigError: it is none of them.
        """
        parts = [part.strip() for part in text.split(",")]
        if not 1 <= len(parts) <= 3 or not all(parts):
            raise ConfigError(
                f"{text!r:.200} is not URL, URL,EVENTS or URL,EVENTS,REPLAY",
                fix="e.g. http://10.0.0.7:8000,tcp://10.0.0.7:5557",
            )
        url, *zmq = parts
        try:
            split = urlsplit(url)
            known = split.scheme in ("http", "https") and bool(split.hostname)
            rest = split.path.rstrip("/") or split.query or split.username
            split.port  # noqa: B018  # raises if it is none
        except ValueError:
            known, rest = False, ""
        if not known or rest:
            raise ConfigError(
                f"{url!r:.200} is not the address of a server",
                fix="give http://HOST:PORT, without a path",
            )
        for each in zmq:
            if not each.startswith(("tcp://", "ipc://")):
                raise ConfigError(
                    f"{each!r:.200} is not an address of ZeroMQ", fix="e.g. tcp://10.0.0.7:5557"
                )
        return Address(url.rstrip("/"), *zmq)


@dataclass(slots=True, eq=False)
class Replica:
    """One server.

    Args:
        id: plain, for people and paths.
        address: where it is.
    """

    id: str
    address: Address
    state: State = "new"
    reason: str = ""
    prefixes: Prefixes = field(default_factory=Prefixes)
    waiting: int = 0
    running: int = 0
    turns: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    pace: float | None = None
    looking: "asyncio.Task[None] | None" = None
    listening: Listening | None = None

    @property
    def taken(self) -> bool:
        """Whether it may be asked."""
        return self.state == "up"

    @property
    def idle(self) -> bool:
        return not self.running and not self.waiting


class Replicas:
    """Those that there are. Belongs to the event loop.

    Args:
        client: asks them whether they are ready.
        policy: of choosing.
        prefix: of their ids.
    """

    def __init__(self, client: httpx.AsyncClient, policy: Policy, prefix: str = "r") -> None:
        self._prefix = prefix
        self._client = client
        self.policy = policy
        self.leaving: Callable[[Replica], None] = lambda replica: None
        """Called with one that is to be asked for nothing more, and may still give answers."""
        self._numbers = itertools.count(1)
        self._all: dict[str, Replica] = {}

    def __iter__(self) -> Iterator[Replica]:
        return iter(list(self._all.values()))

    def get(self, id: str) -> Replica | None:
        return self._all.get(id)

    def add(self, address: Address) -> Replica:
        """From now on it is looked at, and asked once it is ready.

        Raises:
            ConfigError: it is there already, or events need what is not installed.
        """
        if any(replica.address.url == address.url for replica in self):
            raise ConfigError(f"{address.url} is there already")
        replica = Replica(f"{self._prefix}{next(self._numbers)}", address)
        if address.events is not None:
            replica.listening = Listening(address.events, address.replay, replica.prefixes)
        self._all[replica.id] = replica
        replica.looking = asyncio.create_task(self._look(replica))
        return replica

    def drain(self, replica: Replica) -> None:
        """Ask it for nothing more, and leave it out once it has answered."""
        self._set(replica, "draining", "it is being left out")
        self.leaving(replica)

    def close(self) -> None:
        for replica in self:
            self._leave_out(replica)

    def candidates(self, without: Sequence[Replica] = ()) -> list[Replica]:
        """Those that may be asked."""
        return [replica for replica in self if replica.taken and replica not in without]

    def choose(
        self,
        prompt: Sequence[int],
        keys: Callable[[Replica], Sequence[Key]],
        without: Sequence[Replica] = (),
    ) -> tuple[Replica, int] | None:
        """The one to ask, and how many tokens it has cached; None: there is none.

        Args:
            keys: of the prompt's pages, as a server cuts them.
            without: those that were asked and have failed.
        """
        found = self.candidates(without)
        if not found:
            return None
        now = monotonic()
        cached = []
        for replica in found:
            size = replica.prefixes.page_size or 0
            cached.append(size * replica.prefixes.matched(keys(replica), now) if size else 0)
        seen = [
            Candidate(tokens, each.waiting, each.running, each.pace, each.turns)
            for each, tokens in zip(found, cached, strict=True)
        ]
        number = choose(seen, len(prompt), self.policy)
        return found[number], cached[number]

    @contextmanager
    def asked(self, replica: Replica, prompt: int, cached: int) -> Iterator["Asked"]:
        """Meanwhile it works on a request."""
        asked = Asked(replica, prompt, cached)
        try:
            yield asked
        finally:
            asked.end()

    def failed(self, replica: Replica, reason: str) -> None:
        """It could not be reached, or broke off. It is asked again once it is ready."""
        replica.failed += 1
        if replica.state == "up":
            self._set(replica, "down", reason)

    def _set(self, replica: Replica, state: State, reason: str = "") -> None:
        if replica.state != state:
            level = logging.WARNING if state == "down" else logging.INFO
            log.log(level, "%s at %s is %s%s", replica.id, replica.address.url, state,
                    f": {reason}" if reason else "")  # fmt: skip
        replica.state, replica.reason = state, reason
        if state == "down":
            replica.prefixes.forget()
            replica.pace = None

    async def _look(self, replica: Replica) -> None:
        """Ask it again and again whether it is ready, until it is left out."""
        while replica.state != "draining" or not replica.idle:
            if replica.state != "draining":
                reason = await self._unready(replica)
                if replica.state in ("new", "down"):
                    self._set(replica, replica.state if reason else "up", reason)
                elif replica.state == "up" and reason:
                    self._set(replica, "down", reason)
                    self.leaving(replica)
            await asyncio.sleep(LOOK_S)
        self._leave_out(replica)

    async def _unready(self, replica: Replica) -> str:
        """Why it is not ready; empty: it is."""
        try:
            answer = await self._client.get(f"{replica.address.url}/health", timeout=LOOK_TIMEOUT_S)
        except httpx.HTTPError as error:
            return why(error)
        return "" if answer.is_success else f"it answers with {answer.status_code}"

    def _leave_out(self, replica: Replica) -> None:
        self._all.pop(replica.id, None)
        if replica.listening is not None:
            replica.listening.close()
        if replica.looking is not None and replica.looking is not asyncio.current_task():
            replica.looking.cancel()


class Asked:
    """One request at one server, from when it is sent to the end of its answer.

    Args:
        replica: is asked.
        prompt: tokens; 0: not known.
        cached: of these.
    """

    def __init__(self, replica: Replica, prompt: int, cached: int) -> None:
        self._replica = replica
        seen = Candidate(cached, replica.waiting, replica.running, None, 0)
        self._before, self._new = work(seen, prompt), max(1, prompt - cached)
        self._at = monotonic()
        self._state = "waits"
        self._measured = False
        replica.turns += 1
        replica.prompt_tokens += prompt
        replica.cached_tokens += cached
        replica.waiting += self._new

    def begin(self) -> None:
        """The answer begins."""
        self._state = "runs"
        self._replica.waiting -= self._new
        self._replica.running += 1

    def said(self) -> None:
        """Something of a stream was said: how long the first of it took says how fast the server
        is. An answer that comes whole does not say how much of its time was the prompt's."""
        if self._measured:
            return
        self._measured = True
        pace = (monotonic() - self._at) / self._before
        before = self._replica.pace
        self._replica.pace = pace if before is None else before + NEW * (pace - before)

    def end(self) -> None:
        if self._state == "waits":
            self._replica.waiting -= self._new
        elif self._state == "runs":
            self._replica.running -= 1
        self._state = "ended"


def why(error: httpx.HTTPError) -> str:
    """What happened to a connection, in a few words."""
    match error:
        case httpx.ConnectTimeout() | httpx.ReadTimeout() | httpx.WriteTimeout():
            return "it does not answer in time"
        case httpx.ConnectError():
            return "nobody is there"
        case _:
            return "the connection broke"
