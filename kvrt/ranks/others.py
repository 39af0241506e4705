"""The other ranks, as rank 0 sees them: asked, waited for, and named if they fail.

A rank that cannot go on says why and ends; one that was killed says nothing, and its connection
ends. Either way those that wait for it within a step lose it too, and end: the first cause is
looked for, and all that is left is ended. So there is one way to fail, and it leaves nothing.
"""

import contextlib
import json
import logging
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kvrt.errors import (
    BackendUnavailable,
    CapacityError,
    ConfigError,
    DeviceError,
    KvrtError,
    ModelError,
    PeerLost,
    in_one_line,
)
from kvrt.ranks.link import Closed, Kind, Link

PING_S = 0.75
"""A rank that does not answer within this time, whatever it is doing, does not run."""

START_S = 120.0
"""A process that was started has so long until it says anything: imports may come from a disk."""

GATHER_S = 0.2
"""Once one has gone, others that have lost it are given so long to go too, so that all is known."""

END_S = 2.0
"""When all are told to end, they have so long before they are killed."""

PASSED_ON: dict[str, type[KvrtError]] = {
    kind.__name__: kind for kind in (BackendUnavailable, CapacityError, ConfigError, ModelError)
}
"""Errors that are of the same kind whichever rank meets them."""

log = logging.getLogger(__name__)


class Other(NamedTuple):
    """Another rank.

    Args:
        link: to it.
        process: if it was started here.
        where: it runs, for people.
        host: the address by which the others reach it.
    """

    link: Link
    process: "subprocess.Popen[bytes] | None"
    where: str
    host: str


class Others:
    """Belongs to the engine's thread; threads of its own listen.

    Args:
        seconds: that one may keep the others waiting.
        on_failure: called, on some thread, when one has failed and all have ended.
    """

    def __init__(self, seconds: float, on_failure: Callable[[], None]) -> None:
        self._ranks: dict[int, Other] = {}
        self._seconds = seconds
        self._on_failure = on_failure
        self._answers: dict[int, queue.SimpleQueue[tuple[Kind, bytes] | None]] = {}
        self._lock = threading.Lock()
        self._gone: dict[int, dict[str, Any]] = {}  # in the order in which they went
        self._calls: dict[int, int] = {}  # of those that have answered a ping
        self._heard: set[int] = set()
        self._closing = False
        self.failure: KvrtError | None = None
        """Why none of them can be asked any more; None: they can."""
        self._failed = threading.Event()

    def add(self, rank: int, other: Other, hello: bytes) -> None:
        """One more, which is told who it is."""
        self._ranks[rank], self._answers[rank] = other, queue.SimpleQueue()
        with contextlib.suppress(Closed):  # it has ended at once, as is noticed below
            other.link.send(Kind.HELLO, hello)
        name = f"kvrt-rank-{rank}"
        threading.Thread(target=self._listen, args=(rank,), name=name, daemon=True).start()

    # --- asking ------------------------------------------------------------------------------

    def tell(self, kind: Kind, body: bytes = b"") -> None:
        """Say something to all.

        Raises:
            KvrtError: one of them has failed; it is named.
        """
        if self.failure is not None:
            raise self.failure
        for rank, other in self._ranks.items():
            try:
                other.link.send(kind, body)
            except Closed:
                raise self.blame(PeerLost(f"rank {rank} has gone")) from None

    def ask(self, kind: Kind, body: bytes = b"") -> dict[int, bytes]:
        """Say something to all, and wait for what each answers."""
        self.tell(kind, body)
        return self.answers()

    def answers(self) -> dict[int, bytes]:
        """Wait for what each answers."""
        return {rank: self._answer(rank, Kind.DONE) for rank in self._ranks}

    def meet(self, said: Any) -> list[Any]:
        """See `kvrt.model.shard.Split.meet`. A rank may take as long as it likes, while it runs."""
        every = [said, *(json.loads(self._answer(rank, Kind.MEET)) for rank in self._ranks)]
        self.tell(Kind.MEET, json.dumps(every).encode())
        return every

    def _answer(self, rank: int, kind: Kind) -> bytes:
        patient = kind is Kind.MEET
        begun = time.monotonic()
        while True:
            try:
                got = self._answers[rank].get(timeout=self._seconds)
            except queue.Empty:
                starting = rank not in self._heard and time.monotonic() - begun < START_S
                if patient and (starting or not self._silent([rank])):
                    continue
                late = PeerLost(f"rank {rank} has not answered for {self._seconds:g} s")
                raise self.blame(late, waiting_for=rank) from None
            if got is None:
                assert self.failure is not None
                raise self.failure
            if got[0] is not kind:
                raise self.blame(DeviceError(f"rank {rank} answered {got[0].name} to {kind.name}"))
            return got[1]

    # --- when one fails ----------------------------------------------------------------------

    def blame(self, error: BaseException, waiting_for: int | None = None) -> KvrtError:
        """End all ranks for an error that rank 0 has met, and say whose fault it is.

        Args:
            waiting_for: a rank that should have answered.
        """
        if isinstance(error, PeerLost) and waiting_for is None:
            self._failed.wait(2 * GATHER_S + PING_S)
        with self._lock:
            if self.failure is None:
                self._fail(self._cause(error, waiting_for))
        assert self.failure is not None
        return self.failure

    def _listen(self, rank: int) -> None:
        link, said = self._ranks[rank].link, dict[str, Any]()
        try:
            while True:
                kind, body = link.receive()
                self._heard.add(rank)
                if kind is Kind.PONG:
                    self._calls[rank] = json.loads(body)
                elif kind is Kind.FAILED:
                    said = json.loads(body)
                else:
                    self._answers[rank].put((kind, body))
        except Closed:
            pass
        except Exception as error:
            said = {"message": in_one_line(error)}
        self._gone.setdefault(rank, said)
        if self._closing or self.failure is not None:
            return
        time.sleep(GATHER_S)
        with self._lock:
            if self.failure is None and not self._closing:
                self._fail(self._cause(None, None))

    def _cause(self, error: BaseException | None, waiting_for: int | None) -> KvrtError:
        """Whose fault it is, behind the lock."""
        for rank, said in [*self._gone.items()]:
            if not said.get("peer"):
                return self._fault(rank, said)
        if error is not None and not isinstance(error, PeerLost):
            return DeviceError(f"rank 0: {in_one_line(error)}")
        alive = [rank for rank in self._ranks if rank not in self._gone]
        if silent := self._silent(alive):
            waiting_for = silent[0]
        elif waiting_for is None and len(alive) == len(self._calls) > 0:
            waiting_for = min(alive, key=lambda rank: self._calls[rank])
        if waiting_for is not None:
            return DeviceError(
                f"rank {waiting_for} ({self._ranks[waiting_for].where}) kept the others waiting for"
                f" {self._seconds:g} s",
                fix="look whether it was stopped, or is short of memory; with --rank-timeout, more"
                " time can be given",
            )
        if self._gone:
            return self._fault(*next(iter(self._gone.items())))
        return DeviceError(f"rank 0: {error}")

    def _fault(self, rank: int, said: Mapping[str, Any]) -> KvrtError:
        other = self._ranks[rank]
        if said:
            kind = PASSED_ON.get(said.get("kind", ""), DeviceError)
            message = f"rank {rank} ({other.where}): {said.get('message')}"
            return kind(message, fix=said.get("fix", ""))
        return DeviceError(f"rank {rank} ({other.where}) {_ended(other.process)}")

    def _silent(self, ranks: list[int]) -> list[int]:
        """Those that do not answer, although they need nothing but to run."""
        self._calls.clear()
        for rank in ranks:
            try:
                self._ranks[rank].link.send(Kind.PING)
            except Closed:
                continue
        end = time.monotonic() + PING_S
        while time.monotonic() < end and not all(rank in self._calls for rank in ranks):
            time.sleep(0.01)
        return [rank for rank in ranks if rank not in self._calls]

    def _fail(self, failure: KvrtError) -> None:
        """Behind the lock."""
        log.error("%s; all ranks end", failure)
        self.failure = failure
        self._end(patience=0.0)
        for answers in self._answers.values():
            answers.put(None)
        self._failed.set()
        self._on_failure()

    # --- the end -----------------------------------------------------------------------------

    def close(self) -> None:
        """Let all end, and wait until they have. Safe to call twice."""
        self._closing = True
        self._end(END_S)

    def _end(self, patience: float) -> None:
        for other in self._ranks.values():
            other.link.close()
        end = time.monotonic() + patience
        for other in self._ranks.values():
            if (process := other.process) is None:
                continue
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ended(process: "subprocess.Popen[bytes] | None") -> str:
    """What became of a process that has said nothing."""
    if process is None:
        return "has closed its connection"
    try:
        code = process.wait(1.0)
    except subprocess.TimeoutExpired:
        return "has closed its connection"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit status {code}"
