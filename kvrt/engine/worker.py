"""The engine's thread."""

import atexit
import contextlib
import functools
import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from kvrt.config import RuntimeConfig
from kvrt.engine.adapters import NamedAdapters
from kvrt.engine.assembly import assemble
from kvrt.engine.engine import Engine
from kvrt.engine.events import CacheChanged, RequestQueued
from kvrt.engine.mailbox import Call, Command, Mailbox, Signal, T, carry_out
from kvrt.engine.obeying import obey
from kvrt.engine.prefixes import Prefixes
from kvrt.engine.request import Request, failed_result
from kvrt.engine.sleeping import Sleeper
from kvrt.engine.snapshots import Snapshots
from kvrt.errors import ConfigError, DeviceError, KvrtError, in_one_line
from kvrt.kv.cache import KVCache
from kvrt.kv.tiers.folder import own_folder
from kvrt.model.loader import Model
from kvrt.model.progress import Progress
from kvrt.ranks.others import Others
from kvrt.spi import Device
from kvrt.structured.guides import Guides

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 10.0
"""What saving may take when a runtime is closed, or the program ends."""

INTAKE_S = 0.002
"""Between two steps, so long requests are taken in; those that run do not wait for all that come at
once."""

LAST_PAGE_S = 2.0
"""When saving is to stop, the page at hand has so long."""


class Worker(Mailbox):
    """All that touches the device, from opening to closing, on one thread.

    Vendors' libraries like it so, which bind a context to a thread, and OpenMP's runtimes, which
    keep a team of threads for each thread that ever used them.

    `device`, `model`, `cache`, `engine`, `prefixes`, `snapshots` and `guides` are there once it is
    open. Other threads may look at them; they act through what it is as a `Mailbox`, `snapshots`,
    and `guides`.

    It lives as long as its thread does, which keeps it, and which nothing but `stop` ends.

    Args:
        config: of the runtime.
    """

    device: Device
    model: Model
    cache: KVCache
    engine: Engine
    sleeper: Sleeper
    prefixes: Prefixes
    snapshots: Snapshots
    guides: Guides
    adapters: NamedAdapters
    fingerprint: bytes
    load_seconds: float

    def __init__(self, config: RuntimeConfig) -> None:
        super().__init__()
        self._config = config
        self._stopping = self._closed = self._broken = False
        self._left = threading.Event()  # the thread has given everything back
        self._unclosed: KvrtError | None = None  # what came instead of that
        self._others: Others | None = None
        self._told = 0  # the number of the last change to cached pages that observers know of

    def open(self, progress: Progress | None) -> None:
        """Start the thread, and wait until it serves.

        Args:
            progress: told about the bytes of a download, and of files as they are quantised.

        Raises:
            KvrtError: as `kvrt.Runtime`.
        """
        opened: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(opened, progress), name="kvrt-engine", daemon=True
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

    def stop(self) -> None:
        """Let the thread end when it has done what it is doing. Takes no lock, as `abort`."""
        if not self._stopping and self._process.here:
            self._stopping = True
            self._commands.put(Signal.CLOSE)

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
            if hasattr(self, "snapshots"):  # else it is still being opened
                self.snapshots.stop_saving()
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

    def sleep(self, level: int, *, wake_on_request: bool) -> None:
        """See `kvrt.Runtime.sleep`."""

        def sleep() -> None:
            self.sleeper.sleep(level)
            self.refusal = (
                None
                if wake_on_request
                else KvrtError(
                    "the runtime is asleep, and takes no requests",
                    fix="wake it, or let it sleep with wake_on_request",
                )
            )

        self.call(sleep)

    def wake(self) -> None:
        """See `kvrt.Runtime.wake`."""

        def wake() -> None:
            self.sleeper.wake()
            self.refusal = None

        self.call(wake)

    def _ask_thread(self, function: Callable[[], T]) -> T:
        """As `call`; on the thread itself, at once."""
        on_it = threading.current_thread() is self._thread
        return function() if on_it else self.call(function)

    # --- on the thread -----------------------------------------------------------------------

    def _run(self, opened: "Future[None]", progress: Progress | None) -> None:
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
        started = time.perf_counter()
        failed = functools.partial(self.tell, Signal.RANK_FAILED)
        made = assemble(self._config, stack, progress, self._still_wanted, failed, self.observers)
        self._others = made.others
        self.device, self.model, self.cache = made.device, made.model, made.cache
        self.engine, self.prefixes = made.engine, made.prefixes
        self.sleeper = Sleeper(made.engine, made.model.resident)
        if made.engine.memory.tenant is not None:
            made.engine.memory.tenant.listen(lambda: self.tell(Signal.RUNG))
        self.adapters = NamedAdapters(made.model.decoder.adapters)
        self.fingerprint = made.fingerprint
        tokenizer = made.model.tokenizer
        self.guides = Guides(tokenizer, made.model.spec.vocab)
        stack.callback(self.guides.close)
        self.snapshots = Snapshots(made.engine, made.fingerprint, self._ask_thread)
        if self._config.cache_dir is not None:
            folder = own_folder(self._config.cache_dir, self.fingerprint)
            self.snapshots.load_if_there(folder)
            stack.callback(self._save_at_end, folder)
        self.load_seconds = time.perf_counter() - started

    def _still_wanted(self) -> None:
        if self._stopping:
            raise KvrtError("the runtime was closed while it was being opened")

    def _save_at_end(self, folder: Path) -> None:
        """After a step that failed, nobody knows which pages hold what they should."""
        if not self._broken:
            self.snapshots.save_what_can_be(folder)

    def _serve(self) -> None:
        engine = self.engine
        ended = KvrtError("the runtime is closed")
        try:
            while self._take_commands():
                if engine.busy:
                    engine.step()
                    engine.tell_phases()
                    self._end_round()
                    self._tell_of_pages()
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

    def _next_command(self) -> Command | None:
        """What was sent next; None: nothing, and there is work to do. If there is none, memory is
        given back, and it waits."""
        while True:
            try:
                return self._commands.get_nowait()
            except queue.Empty:
                if self.engine.busy:
                    return None
                self._end_round()
            patience = self.engine.rest()
            self._tell_of_pages()
            with contextlib.suppress(queue.Empty):
                return self._commands.get(timeout=patience)

    def _woken(self) -> KvrtError | None:
        """It is awake; or why it is not."""
        try:
            self.sleeper.wake()
        except KvrtError as error:
            return error
        return None

    def _tell_of_pages(self) -> None:
        reuse = self.engine.memory.reuse
        if self.observers and reuse is not None and reuse.events.last != self._told:
            self._told = reuse.events.last
            self.observers.tell(CacheChanged(self._told))

    def _obey(self, command: Command | None) -> bool:
        """Do it. False: there is nothing to be done."""
        if isinstance(command, Request):
            if self.observers:
                prompt = len(command.prompt)
                self.observers.tell(RequestQueued(command.id, command.metadata, prompt))
            if (failed := self._woken()) is None:
                self.engine.add(command)
            else:
                command.deliver(failed_result(command.id, command.prompt, failed, command.metadata))
        elif isinstance(command, Call):
            carry_out(command)
        elif command is Signal.RUNG:
            obey(self.engine, self.sleeper, self.device.info)
        elif command is Signal.RANK_FAILED:
            if self._others is not None and self._others.failure is not None:
                raise self._others.failure
        elif isinstance(command, int):
            request = self._unanswered.get(command)
            if isinstance(request, Request):
                self.engine.abort(request)
        return command is not None


def _engine_error(error: BaseException) -> KvrtError:
    ended = KvrtError(f"engine: {in_one_line(error)}")
    ended.__cause__ = error
    return ended


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
