"""The engine's thread, and the queue through which all others speak to it."""

import atexit
import contextlib
import enum
import functools
import itertools
import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from pathlib import Path

from kvrt.cache import KVCache
from kvrt.config import Environment, RuntimeConfig
from kvrt.engine import Engine
from kvrt.errors import (
    ConfigError,
    DeviceError,
    IntegrityError,
    KvrtError,
    RequestError,
    in_one_line,
)
from kvrt.memory import Memory
from kvrt.model.loader import Model, load_model
from kvrt.model.resolve import Progress
from kvrt.outputs import Delta, Result
from kvrt.prefixes import Prefixes
from kvrt.process import Process
from kvrt.registry import open_device
from kvrt.request import Request, failed_result
from kvrt.sched.batching import Limits
from kvrt.sched.policy import POLICIES
from kvrt.sizing import check_room, make_cache
from kvrt.spi import Device, DeviceOptions
from kvrt.storing import make_offload, make_reuse, own_folder, page_fingerprint

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 10.0
"""What saving may take when a runtime is closed, or the program ends."""

INTAKE_S = 0.002
"""Between two steps, so long requests are taken in; those that run do not wait for all that come at
once."""

LAST_PAGE_S = 2.0
"""When saving is to stop, the page at hand has so long."""


class Signal(enum.Enum):
    """What the engine's thread is told besides requests, and the numbers of those to abort."""

    CLOSE = enum.auto()
    LIMIT_CHANGED = enum.auto()


@dataclass(frozen=True, slots=True)
class _Call:
    """Something to do on the engine's thread, between two steps."""

    function: Callable[[], int]
    result: "Future[int]"


_Question = Request | _Call
"""Somebody waits for the answer."""

_Command = _Question | int | Signal


class Worker:
    """All that touches the device, from opening to closing, on one thread.

    Not only because vendors' libraries like it so: an OpenMP runtime keeps a team of threads for
    each thread that ever used it, and once there are more of them than processors it puts them to
    sleep between any two kernels (measured: 40 % of a small model's decode speed).

    `device`, `model`, `cache`, `engine` and `prefixes` are there once it is open. Other threads may
    look at them; they act through `submit`, `abort`, `tell` and `call`.

    It lives as long as its thread does, which keeps it, and which nothing but `stop` ends.

    Args:
        config: of the runtime.
    """

    device: Device
    model: Model
    cache: KVCache
    engine: Engine
    prefixes: Prefixes
    pages_of: bytes
    load_seconds: float

    def __init__(self, config: RuntimeConfig) -> None:
        self._config = config
        self._process = Process()
        self._stopping = self._closed = self._broken = False
        self._gate = threading.Lock()
        self._ended: KvrtError | None = None  # once set, under the gate, nothing more is queued
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._unanswered: dict[int, _Question] = {}
        self._names: dict[str, int] = {}  # of requests among them
        self._numbers = itertools.count()
        self._left = threading.Event()  # the thread has given everything back
        self._unclosed: KvrtError | None = None  # what came instead of that

    def open(self, progress: Progress | None) -> None:
        """Start the thread, and wait until it serves.

        Args:
            progress: told about the bytes of a download.

        Raises:
            KvrtError: as `kvrt.Runtime`.
        """
        opened: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._live, args=(opened, progress), name="kvrt-engine", daemon=True
        )
        try:
            self._thread.start()
            opened.result()
        except BaseException:
            self.stop()  # if only the wait ended, loading still goes on
            raise
        finally:
            del opened  # an error in it would keep this frame, and this frame the error

    # --- from other threads ------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a request was submitted and has not ended."""
        return bool(self._names)

    def number(self) -> int:
        """For the next request: it is known by that, before and after it was submitted."""
        return next(self._numbers)

    def submit(self, number: int, request: Request) -> None:
        """Queue a request.

        Raises:
            KvrtError: the engine has ended, or is another process's.
            RequestError: another request that has not ended has its name.
        """
        self._process.check()
        with self._gate:
            if request.id in self._names:
                raise RequestError(
                    "a request of this name has not ended yet",
                    param="request_id",
                    fix="give each request a name of its own, or none",
                )
            request.deliver = functools.partial(self._deliver, number, request.deliver)
            self._ask(number, request)
            self._names[request.id] = number

    def _ask(self, number: int, question: _Question) -> None:
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
        deliver(event)

    def _answered(self, number: int) -> None:
        with self._gate:
            question = self._unanswered.pop(number, None)
            if isinstance(question, Request):
                del self._names[question.id]

    # `abort`, `abort_named` and `stop` take no lock: the garbage collector may call them anywhere,
    # also in a thread that is behind the gate.

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

    def stop(self) -> None:
        """Let the thread end when it has done what it is doing."""
        if not self._stopping and self._process.here:
            self._stopping = True
            self._commands.put(Signal.CLOSE)

    def tell(self, signal: Signal) -> None:
        """Queue what is of no use to an engine that has ended.

        Raises:
            KvrtError: the engine is another process's.
        """
        self._process.check()
        if self._ended is None:
            self._commands.put(signal)

    def call(self, function: Callable[[], int]) -> int:
        """Do something on the engine's thread, between two steps, and wait for it.

        Raises:
            KvrtError: the engine has ended, or is another process's.
            BaseException: what the function raises.
        """
        self._process.check()
        call, number = _Call(function, Future()), self.number()
        with self._gate:
            self._ask(number, call)
        try:
            return call.result.result()
        finally:
            self._answered(number)
            del call  # an error in it would keep this frame, and this frame the error

    def close(self, timeout: float | None) -> None:
        """See `kvrt.Runtime.close`."""
        limit = _seconds(timeout)
        if self._closed or not self._process.here:
            return
        self.stop()
        if threading.current_thread() is self._thread:  # a finalizer that happens to run here
            return
        # An exception in `Thread.join` makes Python before 3.13 take the thread for ended.
        try:
            self._left.wait(limit)
        finally:
            if hasattr(self, "prefixes"):  # else it is still being opened
                self.prefixes.stop_saving()
            self._left.wait(LAST_PAGE_S)
        self._closed = True
        if not self._left.is_set():
            self._abandon(limit)
            return
        self._thread.join()
        if self._unclosed is not None:
            raise self._unclosed

    def _abandon(self, timeout: float) -> None:
        """The thread is in a call that does not return: nobody shall wait for it."""
        error = DeviceError(
            f"the device did not return within {timeout:g} s from what it was doing",
            fix="end this process: the device's memory is given back with it",
        )
        log.error("the runtime was closed, but %s; its memory is not given back", error)
        self._refuse_all(error)

    def _refuse_all(self, error: KvrtError) -> None:
        """Whoever waits for an answer, or asks from now on, gets the error."""
        with self._gate:
            self._ended = error
            questions = list(self._unanswered.values())
        for question in questions:
            _refuse(question, error)

    # --- on the thread -----------------------------------------------------------------------

    def _live(self, opened: "Future[None]", progress: Progress | None) -> None:
        _running.add(self)
        try:
            with contextlib.ExitStack() as stack:
                self._open(stack, progress)
                opened.set_result(None)
                self._serve()
        except BaseException as error:
            if not opened.done():
                _forget_frames(error)
                opened.set_exception(error)
            elif not isinstance(error, KvrtError):
                raise
            elif self._broken:  # the device is gone, say: callers know it
                log.error("the device could not be closed: %s", error)
            else:
                self._unclosed = error
        finally:
            del opened
            _running.discard(self)
            self._left.set()

    def _open(self, stack: contextlib.ExitStack, progress: Progress | None) -> None:
        config = self._config
        started = time.perf_counter()
        backend = Environment().backend if config.backend == "auto" else config.backend
        self.device: Device = open_device(
            backend,
            config.device,
            DeviceOptions(threads=config.threads),
            check_layers=config.debug,
        )
        stack.callback(self.device.close)
        self.model: Model = load_model(
            config.model,
            self.device,
            dtype=config.dtype,
            load_format=config.load_format,
            max_model_len=config.max_model_len,
            offline=config.offline,
            revision=config.revision,
            progress=progress,
            seed=config.seed or 0,
            check_room=functools.partial(check_room, config, self.device),
        )
        stack.callback(self.model.decoder.close)
        if self._stopping:
            raise KvrtError("the runtime was closed while it was being opened")
        self.cache: KVCache = make_cache(config, self.device, self.model)
        stack.callback(self.cache.close)
        self.pages_of = page_fingerprint(self.model, self.cache.geometry, self.device.info)
        reuse = make_reuse(config)
        offload = make_offload(config, self.device, self.cache, self.pages_of, reuse)
        self.engine = Engine(
            self.model,
            self.device,
            Memory(self.cache, reuse, offload),
            Limits(config.max_batch_tokens, config.max_running),
            POLICIES[config.policy],
        )
        stack.callback(self.engine.memory.close)
        self.prefixes = Prefixes(self.engine, self.pages_of)
        if config.cache_dir is not None:
            folder = own_folder(config.cache_dir, self.pages_of)
            self.prefixes.load_if_there(folder)
            stack.callback(self._save_at_end, folder)
        self.load_seconds = time.perf_counter() - started

    def _save_at_end(self, folder: Path) -> None:
        """After a step that failed, nobody knows which pages hold what they should."""
        if not self._broken:
            self.prefixes.save_what_can_be(folder)

    def _serve(self) -> None:
        engine = self.engine
        ended = KvrtError("the runtime is closed")
        try:
            while self._take_commands():
                if engine.busy:
                    engine.step()
        except BaseException as error:  # a panic of native code, say
            # Whatever it is, callers are waiting: they get it, and the runtime takes no more.
            log.exception("the engine stopped")
            self._broken = True
            ended = error if isinstance(error, KvrtError) else _engine_error(error)
            _forget_frames(error)
            error.__traceback__ = None  # nor this one
        with self._gate:
            self._ended = ended
        try:
            engine.abort_all(ended)
        except BaseException:
            log.exception("not every request could say how far it had come")
        self._refuse_all(ended)

    def _take_commands(self) -> bool:
        """Pass on what callers sent. False: it is time to end."""
        begun = 0.0
        while not self._stopping:
            if not self.engine.busy:
                begun = time.perf_counter()
            elif time.perf_counter() > (begun := begun or time.perf_counter()) + INTAKE_S:
                return True
            # No name is given to it, which would keep it, and its caller, through the next wait.
            if not self._obey(self._next_command()):
                return True
        return False

    def _next_command(self) -> _Command | None:
        """What was sent next; None: nothing, and there is work to do. If there is none, memory is
        given back, and it waits."""
        while True:
            try:
                return self._commands.get_nowait()
            except queue.Empty:
                if self.engine.busy:
                    return None
            with contextlib.suppress(queue.Empty):
                return self._commands.get(timeout=self.engine.memory.rest())

    def _obey(self, command: _Command | None) -> bool:
        """Do it. False: there is nothing to be done."""
        if isinstance(command, Request):
            self.engine.add(command)
        elif isinstance(command, _Call):
            _carry_out(command)
        elif isinstance(command, int):
            request = self._unanswered.get(command)
            if isinstance(request, Request):
                self.engine.abort(request)
        return command is not None


def _engine_error(error: BaseException) -> KvrtError:
    ended = KvrtError(f"engine: {in_one_line(error)}")
    ended.__cause__ = error
    return ended


def _carry_out(call: _Call) -> None:
    """A call that fails is its caller's business, and the engine's only if the device failed, or
    the page table is not what it should be."""
    with contextlib.suppress(InvalidStateError):  # its caller was told not to wait any longer
        try:
            call.result.set_result(call.function())
        except (DeviceError, IntegrityError) as error:
            call.result.set_exception(error)
            raise
        except BaseException as error:
            call.result.set_exception(error)
        finally:
            del call  # an error in it would keep this frame, and this frame the error


def _refuse(question: _Question, error: KvrtError) -> None:
    if isinstance(question, Request):
        question.deliver(failed_result(question.id, question.prompt, error))
    else:
        with contextlib.suppress(InvalidStateError):  # it came just now
            question.result.set_exception(error)


def _forget_frames(error: BaseException) -> None:
    """Nothing that was at hand when it was raised lives as long as the error does."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__


def _seconds(timeout: float | None) -> float:
    """How long to wait, as the system takes it."""
    if timeout is None:
        return threading.TIMEOUT_MAX
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
        raise ConfigError(
            f"timeout is {timeout!r:.50}; it must be a number of seconds, 0 or more",
            fix="leave it out, or give None to wait as long as it takes",
        )
    return float(min(timeout, threading.TIMEOUT_MAX))


_running: set[Worker] = set()


@atexit.register
def _close_all() -> None:
    """The program ends, and no thread may be in native code by then. A forked child's does, too."""
    for worker in _running.copy():
        worker.stop()
    for worker in _running.copy():
        try:
            worker.close(CLOSE_TIMEOUT_S)
        except KvrtError as error:
            log.error("a runtime could not be closed: %s", error)
