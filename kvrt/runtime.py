"""`Runtime`: a model, a device and its KV memory, behind one object.

    with kvrt.Runtime("tiny") as runtime:
        for result in runtime.generate(["def add(a, b):"], SamplingParams(max_tokens=32)):
            print(result.text)

Any thread may call it. The engine has a thread of its own; callers speak to it through a queue.
"""

import contextlib
import enum
import functools
import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from kvrt.cache import KVCache, LimitChange
from kvrt.config import Environment, RuntimeConfig, draft_limit
from kvrt.control import CacheControl
from kvrt.engine import Engine
from kvrt.errors import CapacityError, ConfigError, KvrtError, RequestError
from kvrt.memory import Memory
from kvrt.model.loader import Model, load_model
from kvrt.model.resolve import Progress
from kvrt.outputs import Result
from kvrt.prefixes import Prefixes
from kvrt.prompts import Prompt, as_list, room_for, tokens_of
from kvrt.registry import open_device
from kvrt.request import Request, failed_result
from kvrt.sampling import SamplingParams
from kvrt.sched.batching import Limits
from kvrt.sched.policy import POLICIES
from kvrt.sizing import limit_bytes, make_cache, too_small
from kvrt.spi import Device, DeviceInfo, DeviceOptions
from kvrt.stats import RuntimeStats, stats_of
from kvrt.storing import make_offload, make_reuse, own_folder, page_fingerprint
from kvrt.stream import Stream
from kvrt.tiers.names import KEY_BYTES

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 10.0
LAST_PAGE_S = 2.0
"""When saving is to stop, the page at hand has so long."""


class _Signal(enum.Enum):
    """What the engine's thread is told besides requests, and the names of those to abort."""

    CLOSE = enum.auto()
    LIMIT_CHANGED = enum.auto()


@dataclass(frozen=True, slots=True)
class _Call:
    """Something to do on the engine's thread, between two steps."""

    function: Callable[[], int]
    result: "Future[int]"


Command = Request | str | _Signal | _Call


class Runtime(CacheControl):
    """See the module. Takes `RuntimeConfig`'s fields as keyword arguments, or a config.

    `generate` and `stream` ask; `stats` and `set_memory_limit` look and steer; the methods of
    `CacheControl` pin, forget, save, load and follow what was computed before.

    Args:
        model: short for ``RuntimeConfig.model``.
        config: all options at once.
        progress: told about the bytes of a download.

    Raises:
        ConfigError: an option has a bad value.
        BackendUnavailable: the backend cannot be used here.
        ModelError: the model is missing, damaged or not supported.
        CapacityError: model and smallest cache do not fit in the memory there is.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        config: RuntimeConfig | None = None,
        progress: Progress | None = None,
        **options: object,
    ) -> None:
        if config is None:
            named = {"model": model} if model is not None else {}
            try:
                config = RuntimeConfig(**named, **options)  # type: ignore[arg-type]
            except TypeError as error:
                raise ConfigError(f"unknown option: {error}") from None
        elif model is not None or options:
            raise ConfigError("give either a config or single options, not both")
        self.config = config
        self._drafts = draft_limit(config.speculate)
        self._pid = os.getpid()
        self._closed = False
        self._broken = False
        self._ids = iter(range(1, 2**63))
        self._gate = threading.Lock()
        self._ended: KvrtError | None = None  # once set, under the gate, nothing more is queued
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._left = threading.Event()  # the thread has given everything back
        opened: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._live, args=(opened, progress), name="kvrt-engine", daemon=True
        )
        self._thread.start()
        try:
            opened.result()
        except BaseException:
            self._commands.put(_Signal.CLOSE)  # if only the wait ended, loading still goes on
            raise

    # --- asking ------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        cache_salt: str = "",
        private: bool = False,
    ) -> list[Result]:
        """Answer prompts as one continuous batch; results come in the order of the prompts.

        A request that is bad or fails has its error in `Result.error`, and the others go on.
        An exception in the caller, such as Ctrl-C, aborts all of them.

        Args:
            cache_salt: with whom they share KV pages; see `stream`.
            private: each of them uses no pages of others, and leaves none.
        """
        asked = as_list(prompts)
        wishes = [params] * len(asked) if isinstance(params, SamplingParams | None) else [*params]
        if len(wishes) != len(asked):
            raise ConfigError(f"{len(asked)} prompts, but {len(wishes)} sampling parameters")
        streams: list[Stream | Result] = []
        try:
            for number, (prompt, wish) in enumerate(zip(asked, wishes, strict=True)):
                try:
                    streams.append(
                        self.stream(prompt, wish, cache_salt=cache_salt, private=private)
                    )
                except (RequestError, CapacityError) as error:
                    streams.append(failed_result(f"refused-{number}", (), error))
            return [s if isinstance(s, Result) else s.wait() for s in streams]
        except BaseException:
            for stream in streams:
                if isinstance(stream, Stream):
                    stream.close()
            raise

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
        private: bool = False,
    ) -> Stream:
        """Submit one prompt and return its stream at once.

        Args:
            request_id: a name for `abort`; None: one is made.
            priority: smaller is served first, under the priority policy.
            cache_salt: requests share KV pages only with those of the same salt: one for each
                tenant keeps tenants apart, also in how long an answer takes.
            private: it uses no pages of others, and leaves none.

        Raises:
            RequestError: the request is bad; nothing was queued.
            CapacityError: its prompt could never fit in the memory limit.
        """
        params = params or SamplingParams()
        tokens = self._tokens(prompt)
        room = room_for(tokens, self.model, self.cache)
        seed = params.seed
        if seed is None:
            seed = secrets.randbits(64) if self.config.seed is None else self.config.seed
        stream = Stream(request_id or f"request-{next(self._ids)}", self.abort)
        max_new = room - len(tokens) if params.max_tokens is None else params.max_tokens
        self._send(
            Request(
                id=stream.request_id,
                prompt=tuple(tokens),
                params=params,
                seed=seed,
                max_len=min(room, len(tokens) + max_new),
                priority=priority,
                root=secrets.token_bytes(KEY_BYTES) if private else self._root(cache_salt),
                shares=not private,
                drafts=self._drafts_of(params),
                detokenizer=functools.partial(self.model.detokenizer, tokens),
                deliver=stream.deliver,
            )
        )
        return stream

    def abort(self, request_id: str) -> None:
        """End a request, waiting or running; its stream ends with reason ``abort``.

        An id that is unknown or has ended is not an error: the answer may just have come.
        """
        self._tell(request_id)

    def _drafts_of(self, params: SamplingParams) -> int:
        """How many tokens may be guessed in a step."""
        if params.beam_width > 1:
            return 0
        return self._drafts if params.speculate is None else params.speculate

    def _tokens(self, prompt: Prompt) -> list[int]:
        return tokens_of(prompt, self.model)

    # --- looking and steering ----------------------------------------------------------------

    @property
    def device_info(self) -> DeviceInfo:
        return self.device.info

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs."""
        return self._engine.busy

    def stats(self) -> RuntimeStats:
        return stats_of(self._engine, self._load_seconds)

    def set_memory_limit(self, limit: int | str, revision: int | None = None) -> LimitChange:
        """Change what weights and KV cache together may take, in bytes, while running.

        What is held above it is given back at once if the engine is idle, else after each step as
        pages come free. See `kvrt.cache.KVCache.set_memory_limit`.

        Raises:
            CapacityError: the weights leave no room for a single page.
        """
        kv = limit_bytes(limit, self.device) - self.model.weight_bytes
        if kv < self.cache.geometry.page_bytes:
            raise too_small(limit, self.model, self.cache.geometry)
        change = self.cache.set_memory_limit(kv, revision)
        self._tell(_Signal.LIMIT_CHANGED)
        return change

    def close(self, timeout: float = CLOSE_TIMEOUT_S) -> None:
        """Abort what runs, save to `cache_dir`, give all memory back. Safe to call twice.

        Args:
            timeout: seconds after which saving stops; so does an exception in the caller, such as
                Ctrl-C. What was saved until then is whole.
        """
        if self._closed:
            return
        self._closed = True
        self._commands.put(_Signal.CLOSE)
        # An exception in `Thread.join` makes Python before 3.13 take the thread for ended.
        try:
            self._left.wait(timeout)
        finally:
            self._prefixes.stop_saving()
            self._left.wait(LAST_PAGE_S)
        if self._left.is_set():
            self._thread.join()
        else:
            log.error("the engine did not stop within %g s; its memory is not given back", timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- the engine's thread -----------------------------------------------------------------

    def _call(self, function: Callable[[], int]) -> int:
        """Do something on the engine's thread, and wait for it."""
        call = _Call(function, Future())
        self._send(call)
        return call.result.result()

    def _send(self, command: Request | _Call) -> None:
        if os.getpid() != self._pid:
            raise KvrtError(
                "this runtime was made before a fork", fix="make one in the child, or use spawn"
            )
        with self._gate:
            if self._ended is not None:
                raise self._ended
            self._commands.put(command)

    def _tell(self, command: str | _Signal) -> None:
        """Queue what is of no use to an engine that has ended."""
        with self._gate:
            if self._ended is None:
                self._commands.put(command)

    def _live(self, opened: "Future[None]", progress: Progress | None) -> None:
        """All that touches the device, from opening to closing, on this one thread.

        Not only because vendors' libraries like it so: an OpenMP runtime keeps a team of threads
        for each thread that ever used it, and once there are more of them than processors it puts
        them to sleep between any two kernels (measured: 40 % of a small model's decode speed).
        """
        try:
            with contextlib.ExitStack() as stack:
                self._open(stack, progress)
                opened.set_result(None)
                self._serve()
        except BaseException as error:
            if not opened.done():
                opened.set_exception(error)
            elif isinstance(error, KvrtError):  # of a device that is gone, say: callers know it
                log.error("the device could not be closed: %s", error)
            else:
                raise
        finally:
            self._left.set()

    def _open(self, stack: contextlib.ExitStack, progress: Progress | None) -> None:
        config = self.config
        started = time.perf_counter()
        backend = Environment.read().backend if config.backend == "auto" else config.backend
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
        self._pages_of = page_fingerprint(self.model, self.cache.geometry, self.device.info)
        reuse = make_reuse(config)
        offload = make_offload(config, self.device, self.cache, self._pages_of, reuse)
        self._engine = Engine(
            self.model,
            self.device,
            Memory(self.cache, reuse, offload),
            Limits(config.max_batch_tokens, config.max_running),
            POLICIES[config.policy],
        )
        stack.callback(self._engine.memory.close)
        self._prefixes = Prefixes(self._engine, self._pages_of)
        if config.cache_dir is not None:
            folder = own_folder(config.cache_dir, self._pages_of)
            self._prefixes.load_if_there(folder)
            stack.callback(self._save_at_end, folder)
        self._load_seconds = time.perf_counter() - started

    def _save_at_end(self, folder: Path) -> None:
        """After a step that failed, nobody knows which pages hold what they should."""
        if not self._broken:
            self._prefixes.save_what_can_be(folder)

    def _serve(self) -> None:
        engine = self._engine
        ended = KvrtError("the runtime is closed")
        try:
            while self._take_commands():
                if engine.busy:
                    engine.step()
        except Exception as error:
            # Whatever it is, callers are waiting: they get it, and the runtime takes no more.
            log.exception("the engine stopped")
            self._broken = True
            ended = error if isinstance(error, KvrtError) else KvrtError(f"engine: {error!r}")
        with self._gate:
            self._ended = ended
        engine.abort_all(ended)
        while not self._commands.empty():
            command = self._commands.get()
            if isinstance(command, _Call):
                command.result.set_exception(ended)
            elif isinstance(command, Request):
                command.deliver(failed_result(command.id, command.prompt, ended))

    def _take_commands(self) -> bool:
        """Pass on what callers sent; if there is nothing to do, give memory back and wait."""
        engine = self._engine
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
            if command is _Signal.CLOSE:
                return False
            if isinstance(command, Request):
                engine.add(command)
            elif isinstance(command, _Call):
                _carry_out(command)
            elif isinstance(command, str):
                engine.abort(command)


def _carry_out(call: _Call) -> None:
    """A call that fails is its caller's business, and not the engine's."""
    try:
        call.result.set_result(call.function())
    except (KvrtError, OSError) as error:
        call.result.set_exception(error)
    except BaseException as error:
        call.result.set_exception(error)
        raise
