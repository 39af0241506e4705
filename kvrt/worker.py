"""The engine's thread, and the queue through which all others speak to it."""

import contextlib
import enum
import functools
import itertools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from pathlib import Path

from kvrt.cache import KVCache
from kvrt.config import Environment, RuntimeConfig
from kvrt.engine import Engine
from kvrt.errors import DeviceError, KvrtError, in_one_line
from kvrt.memory import Memory
from kvrt.model.loader import Model, load_model
from kvrt.model.resolve import Progress
from kvrt.outputs import Delta, Result
from kvrt.prefixes import Prefixes
from kvrt.registry import open_device
from kvrt.request import Request, failed_result
from kvrt.sched.batching import Limits
from kvrt.sched.policy import POLICIES
from kvrt.sizing import make_cache
from kvrt.spi import Device, DeviceOptions
from kvrt.storing import make_offload, make_reuse, own_folder, page_fingerprint

log = logging.getLogger(__name__)

LAST_PAGE_S = 2.0
"""When saving is to stop, the page at hand has so long."""


class Signal(enum.Enum):
    """What the engine's thread is told besides requests, and the names of those to abort."""

    CLOSE = enum.auto()
    LIMIT_CHANGED = enum.auto()


@dataclass(frozen=True, slots=True)
class _Call:
    """Something to do on the engine's thread, between two steps."""

    function: Callable[[], int]
    result: "Future[int]"


_Question = Request | _Call
"""Somebody waits for the answer."""

_Command = _Question | str | Signal


class Worker:
    """All that touches the device, from opening to closing, on one thread.

    Not only because vendors' libraries like it so: an OpenMP runtime keeps a team of threads for
    each thread that ever used it, and once there are more of them than processors it puts them to
    sleep between any two kernels (measured: 40 % of a small model's decode speed).

    `device`, `model`, `cache`, `engine` and `prefixes` are there once it is made. Other threads may
    look at them; they act through `send`, `tell` and `call`.

    Args:
        config: of the runtime.
        progress: told about the bytes of a download.

    Raises:
        KvrtError: as `kvrt.Runtime`.
    """

    device: Device
    model: Model
    cache: KVCache
    engine: Engine
    prefixes: Prefixes
    pages_of: bytes
    load_seconds: float

    def __init__(self, config: RuntimeConfig, progress: Progress | None) -> None:
        self._config = config
        self._pid = os.getpid()
        self._closed = False
        self._broken = False
        self._gate = threading.Lock()
        self._ended: KvrtError | None = None  # once set, under the gate, nothing more is queued
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._unanswered: dict[int, _Question] = {}
        self._numbers = itertools.count()
        self._left = threading.Event()  # the thread has given everything back
        self._unclosed: KvrtError | None = None  # what came instead of that
        opened: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._live, args=(opened, progress), name="kvrt-engine", daemon=True
        )
        self._thread.start()
        try:
            opened.result()
        except BaseException:
            self._commands.put(Signal.CLOSE)  # if only the wait ended, loading still goes on
            raise

    # --- from other threads ------------------------------------------------------------------

    def send(self, question: _Question) -> int:
        """Queue what must be answered, and give it a number.

        Raises:
            KvrtError: the engine has ended, or is another process's.
        """
        if os.getpid() != self._pid:
            raise KvrtError(
                "this runtime was made before a fork", fix="make one in the child, or use spawn"
            )
        with self._gate:
            if self._ended is not None:
                raise self._ended
            number = next(self._numbers)
            if isinstance(question, Request):
                question.deliver = functools.partial(self._deliver, number, question.deliver)
            self._unanswered[number] = question
            self._commands.put(question)
        return number

    def _deliver(
        self, number: int, deliver: Callable[[Delta | Result], None], event: Delta | Result
    ) -> None:
        if isinstance(event, Result):
            self._answered(number)
        deliver(event)

    def _answered(self, number: int) -> None:
        with self._gate:
            self._unanswered.pop(number, None)

    def tell(self, command: str | Signal) -> None:
        """Queue what is of no use to an engine that has ended: a signal, a request to abort."""
        with self._gate:
            if self._ended is None:
                self._commands.put(command)

    def call(self, function: Callable[[], int]) -> int:
        """Do something on the engine's thread, between two steps, and wait for it."""
        call = _Call(function, Future())
        number = self.send(call)
        try:
            return call.result.result()
        finally:
            self._answered(number)

    def close(self, timeout: float) -> None:
        """See `kvrt.Runtime.close`."""
        if self._closed:
            return
        self._closed = True
        self._commands.put(Signal.CLOSE)
        # An exception in `Thread.join` makes Python before 3.13 take the thread for ended.
        try:
            self._left.wait(timeout)
        finally:
            self.prefixes.stop_saving()
            self._left.wait(LAST_PAGE_S)
        if not self._left.is_set():
            self._abandon(timeout)
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
        with self._gate:
            self._ended = error
            questions = list(self._unanswered.values())
        for question in questions:
            _refuse(question, error)

    # --- on the thread -----------------------------------------------------------------------

    def _live(self, opened: "Future[None]", progress: Progress | None) -> None:
        try:
            with contextlib.ExitStack() as stack:
                self._open(stack, progress)
                opened.set_result(None)
                self._serve()
        except BaseException as error:
            if not opened.done():
                opened.set_exception(error)
            elif not isinstance(error, KvrtError):
                raise
            elif self._broken:  # the device is gone, say: callers know it
                log.error("the device could not be closed: %s", error)
            else:
                self._unclosed = error
        finally:
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
        )
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
        except Exception as error:
            # Whatever it is, callers are waiting: they get it, and the runtime takes no more.
            log.exception("the engine stopped")
            self._broken = True
            ended = error if isinstance(error, KvrtError) else _engine_error(error)
        with self._gate:
            self._ended = ended
        engine.abort_all(ended)
        while not self._commands.empty():
            command = self._commands.get()
            if isinstance(command, _Question):
                _refuse(command, ended)

    def _take_commands(self) -> bool:
        """Pass on what callers sent; if there is nothing to do, give memory back and wait."""
        engine = self.engine
        while True:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                if engine.busy:
                    return True
                try:
                    command = self._commands.get(timeout=engine.memory.rest())
                except queue.Empty:
                    continue
            if command is Signal.CLOSE:
                return False
            if isinstance(command, Request):
                engine.add(command)
            elif isinstance(command, _Call):
                _carry_out(command)
            elif isinstance(command, str):
                engine.abort(command)


def _engine_error(error: Exception) -> KvrtError:
    ended = KvrtError(f"engine: {in_one_line(error)}")
    ended.__cause__ = error
    return ended


def _carry_out(call: _Call) -> None:
    """A call that fails is its caller's business, and not the engine's."""
    with contextlib.suppress(InvalidStateError):  # its caller was told not to wait any longer
        try:
            call.result.set_result(call.function())
        except (KvrtError, OSError) as error:
            call.result.set_exception(error)
        except BaseException as error:
            call.result.set_exception(error)
            raise


def _refuse(question: _Question, error: KvrtError) -> None:
    if isinstance(question, Request):
        question.deliver(failed_result(question.id, question.prompt, error))
    else:
        with contextlib.suppress(InvalidStateError):  # it came just now
            question.result.set_exception(error)
