"""What callers send to the engine's thread, and who of them waits for an answer."""

import contextlib
import enum
import functools
import itertools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from kvrt.engine.events import Observers, RequestFinished
from kvrt.engine.process import Process
from kvrt.engine.request import Request, failed_result
from kvrt.errors import IntegrityError, KvrtError, RequestError
from kvrt.outputs import Delta, Result

T = TypeVar("T")


class Signal(enum.Enum):
    """What the engine's thread is told besides requests, and the numbers of those to abort."""

    CLOSE = enum.auto()
    LIMIT_CHANGED = enum.auto()
    RUNG = enum.auto()
    RANK_FAILED = enum.auto()


@dataclass(frozen=True, slots=True)
class Call:
    """Something to do on the engine's thread, between two steps."""

    function: Callable[[], Any]
    result: "Future[Any]"


Question = Request | Call
"""Somebody waits for the answer."""

Command = Question | int | Signal


class Mailbox:
    """What other threads see of the engine's. It knows each question until it is answered, so that
    nobody waits for ever, whatever becomes of the engine."""

    def __init__(self) -> None:
        self._process = Process()
        self._gate = threading.Lock()
        self._ended: KvrtError | None = None  # once set, under the gate, nothing more is queued
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._unanswered: dict[int, Question] = {}
        self._names: dict[str, int] = {}  # of requests among them
        self._numbers = itertools.count()
        self._rounds: tuple[Callable[[], None], ...] = ()
        self.observers = Observers()
        self.refusal: KvrtError | None = None
        """Why requests are not taken for now; None: they are."""

    @property
    def busy(self) -> bool:
        """Whether a request was submitted and has not ended."""
        return bool(self._names)

    @property
    def ended(self) -> KvrtError | None:
        """Why nothing can be asked any more; None: it can."""
        return self._ended

    def number(self) -> int:
        """For the next request: it is known by that, before and after it was submitted."""
        return next(self._numbers)

    def each_round(self, call: Callable[[], None]) -> None:
        """Call it on the engine's thread after each step, and before the thread waits: what was
        delivered meanwhile can be passed on at once. It must not fail."""
        with self._gate:
            self._rounds = (*self._rounds, call)

    def submit(self, number: int, request: Request) -> None:
        """Queue a request.

        Raises:
            KvrtError: the engine has ended, is another process's, or takes no requests for now.
            RequestError: another request that has not ended has its name.
        """
        self._process.check()
        with self._gate:
            if self.refusal is not None:
                raise self.refusal.with_traceback(None)
            if request.id in self._names:
                raise RequestError(
                    "request_id: a request of this name has not ended yet",
                    param="request_id",
                    fix="give each request a name of its own, or none",
                )
            request.deliver = functools.partial(self._deliver, number, request.deliver)
            self._ask(number, request)
            self._names[request.id] = number

    def _ask(self, number: int, question: Question) -> None:
        """Behind the gate."""
        if self._ended is not None:
            raise self._ended.with_traceback(None)  # those who met it before are not its business
        self._unanswered[number] = question
        self._commands.put(question)

    def _deliver(
        self, number: int, deliver: Callable[[Delta | Result], None], event: Delta | Result
    ) -> None:
        if isinstance(event, Result):
            self._answered(number)
            if self.observers:
                self.observers.tell(RequestFinished(event))
        deliver(event)

    def _answered(self, number: int) -> None:
        with self._gate:
            question = self._unanswered.pop(number, None)
            if isinstance(question, Request):
                del self._names[question.id]

    # `abort` and `abort_named` take no lock: the garbage collector may call them anywhere, also in
    # a thread that is behind the gate.

    def abort(self, number: int) -> None:
        """End a request, unless it has ended, or is another process's."""
        if number in self._unanswered and self._process.here:
            self._commands.put(number)

    def abort_named(self, name: str) -> None:
        """As `abort`, by the name that it has until it ends.

        Raises:
            KvrtError: the engine is another process's.
        """
        self._process.check()
        number = self._names.get(name)
        if number is not None:
            self._commands.put(number)

    def tell(self, signal: Signal) -> None:
        """Queue what is of no use to an engine that has ended.

        Raises:
            KvrtError: the engine is another process's.
        """
        self._process.check()
        if self._ended is None:
            self._commands.put(signal)

    def call(self, function: Callable[[], T]) -> T:
        """Do something on the engine's thread, between two steps, and wait for it.

        Raises:
            KvrtError: the engine has ended, or is another process's.
            BaseException: what the function raises.
        """
        self._process.check()
        call, number = Call(function, Future()), self.number()
        with self._gate:
            self._ask(number, call)
        try:
            return cast(T, call.result.result())
        finally:
            self._answered(number)
            del call  # an error in it would keep this frame, and this frame the error

    # --- on the engine's thread --------------------------------------------------------------

    def _end_round(self) -> None:
        for call in self._rounds:
            call()

    def _refuse_all(self, error: KvrtError) -> None:
        """Whoever waits for an answer, or asks from now on, gets the error."""
        with self._gate:
            self._ended = error
            questions = list(self._unanswered.values())
        for question in questions:
            _refuse(question, error)
        self._end_round()


def carry_out(call: Call) -> None:
    """A call that fails is its caller's business, and the engine's only if the page table is not
    what it should be."""
    with contextlib.suppress(InvalidStateError):  # its caller was told not to wait any longer
        try:
            call.result.set_result(call.function())
        except IntegrityError as error:
            call.result.set_exception(error)
            raise
        except BaseException as error:
            call.result.set_exception(error)
        finally:
            del call  # an error in it would keep this frame, and this frame the error


def _refuse(question: Question, error: KvrtError) -> None:
    if isinstance(question, Request):
        result = failed_result(question.id, question.prompt, error, question.metadata)
        question.deliver(result)
    else:
        with contextlib.suppress(InvalidStateError):  # it came just now
            question.result.set_exception(error)
