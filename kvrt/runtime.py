"""`Runtime`: a model, a device and its KV memory, behind one object.

    with kvrt.Runtime("tiny") as runtime:
        for result in runtime.generate(["def add(a, b):"], SamplingParams(max_tokens=32)):
            print(result.text)

Any thread may call it. The engine has a thread of its own; callers speak to it through a queue.
"""

import functools
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kvrt.checks import (
    Checks,
    Maybe,
    Of,
    Size,
    Text,
    Whole,
    check_options,
    check_request,
)
from kvrt.config import RuntimeConfig
from kvrt.control import CacheControl, ModelControl
from kvrt.engine.events import Observer
from kvrt.engine.intake import STREAM, Wishes, request_of
from kvrt.engine.mailbox import Signal
from kvrt.engine.prompts import Prompt, as_list
from kvrt.engine.queue import Queued
from kvrt.engine.request import failed_result
from kvrt.engine.sizing import set_limit
from kvrt.engine.stats import RuntimeStats, stats_of
from kvrt.engine.worker import CLOSE_TIMEOUT_S, Worker
from kvrt.errors import CapacityError, ConfigError, KvrtError, ModelError, RequestError
from kvrt.kv.cache import KVCache
from kvrt.kv.limit import LimitChange
from kvrt.kv.picture import GroupPicture
from kvrt.model.loader import Model
from kvrt.model.progress import Progress
from kvrt.outputs import Result
from kvrt.sampling import SamplingParams
from kvrt.spi import Device, DeviceInfo
from kvrt.stream import Inbox, Stream

LIMIT: Checks = {"limit": Size(), "revision": Maybe(Whole(-(2**63), 2**63 - 1))}
"""Of each argument, what it may be."""


class Runtime(CacheControl, ModelControl):
    """See the module. Takes `RuntimeConfig`'s fields as keyword arguments, or a config.

    `generate` and `stream` ask; `stats` and `set_memory_limit` look and steer; the methods of
    `ModelControl` let it sleep and wake, and load adapters; those of `CacheControl` pin, forget,
    save, load and follow what was computed before.

    A runtime that nobody holds any more, nor any of its streams, closes in the background; when the
    program ends, each one that is open does, as by `close`. In a forked child a runtime is of no
    use: asking is an error, and closing does nothing.

    Args:
        model: short for ``RuntimeConfig.model``.
        config: all options at once.
        progress: told about the bytes of a download, and of files as they are quantised.

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
        check_options({"config": Maybe(Of((RuntimeConfig,)))}, config=config)
        if config is None:
            named = {"model": model} if model is not None else {}
            try:
                config = RuntimeConfig(**named, **options)  # type: ignore[arg-type]
            except TypeError as error:
                raise ConfigError(f"unknown option: {error}") from None
        elif model is not None or options:
            raise ConfigError("give either a config or single options, not both")
        self.config = config
        self._worker = Worker(config)
        weakref.finalize(self, self._worker.stop).atexit = False  # it has a way to end of its own
        self._worker.open(progress)
        self.device: Device = self._worker.device
        self.model: Model = self._worker.model
        self.cache: KVCache = self._worker.cache

    # --- asking ------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        cache_salt: str = "",
        private: bool = False,
        adapter: str | None = None,
    ) -> list[Result]:
        """Answer prompts as one continuous batch; results come in the order of the prompts.

        A request that is bad or fails has its error in `Result.error`, and the others go on. If the
        runtime ends meanwhile, those that have no answer yet have its error. An exception in the
        caller, such as Ctrl-C, aborts all of them.

        Args:
            cache_salt: with whom they share KV pages; see `stream`.
            private: each of them uses no pages of others, and leaves none.
            adapter: as in `stream`, of all of them.

        Raises:
            KvrtError: the runtime had ended before.
        """
        asked = as_list(prompts)
        wishes = _wishes(params, len(asked))
        streams: list[Stream | Result] = []
        try:
            for number, (prompt, wish) in enumerate(zip(asked, wishes, strict=True)):
                try:
                    streams.append(
                        self.stream(
                            prompt, wish, cache_salt=cache_salt, private=private, adapter=adapter
                        )
                    )
                except KvrtError as error:
                    refused = isinstance(error, RequestError | CapacityError | ModelError)
                    if not refused and not any(isinstance(s, Stream) for s in streams):
                        raise  # there are no answers to lose
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
        adapter: str | None = None,
        metadata: Any = None,
        said: Sequence[int] = (),
    ) -> Stream:
        """Submit one prompt and return its stream at once.

        Args:
            request_id: a name for `abort`, which no other request has at that time; None: one is
                made.
            priority: smaller is served first, under the priority policy.
            cache_salt: requests share KV pages only with those of the same salt: one for each
                tenant keeps tenants apart, also in how long an answer takes.
            private: it uses no pages of others, and leaves none.
            adapter: the name of one that is loaded, which answers; None: the model as it is.
            metadata: anything; its result and events have it, and kvrt never looks at it.
            said: tokens that this answer has said already, by another runtime of the same model: it
                goes on behind them as it would have there, if it has the same parameters and the
                `seed` that it had. They come first, as one piece (`Delta.again`).

        Raises:
            RequestError: the request is bad; nothing was queued.
            CapacityError: its prompt could never fit in the memory limit.
        """
        wishes = Wishes(
            params=params,
            request_id=request_id,
            priority=priority,
            cache_salt=cache_salt,
            private=private,
            adapter=adapter,
            metadata=metadata,
            said=said,
        )
        inbox, number = Inbox(), self._worker.number()
        request = request_of(self._worker, self.config, prompt, wishes, inbox.deliver)
        # The stream comes first: if anything interrupts the rest, it ends the request.
        stream = Stream(request.id, inbox, functools.partial(self._abort, number))
        stream.seed = request.seed
        self._worker.submit(number, request)
        return stream

    def abort(self, request_id: str) -> None:
        """End a request, waiting or running; its stream ends with reason ``abort``.

        An id that is unknown or has ended is not an error: the answer may just have come.
        """
        check_request({"request_id": Text()}, request_id=request_id)
        self._worker.abort_named(request_id)

    def _abort(self, number: int) -> None:
        """A stream's way to end its request; through it, the stream keeps the runtime open."""
        self._worker.abort(number)

    def add_observer(self, observer: Observer, *, phases: bool = False) -> None:
        """Call `observer` with what becomes of requests, each step and cached pages: see
        `kvrt.engine.events`.

        On the engine's thread: everything waits for it, so it must be quick, and may ask nothing of
        the runtime that waits for the engine. One that raises is told nothing more.

        Args:
            phases: tell it, too, what each step is spent on (`kvrt.engine.events.StepPhases`). That
                is recorded while anybody wants it, which takes some microseconds a step.
        """
        self._worker.observers.add(observer, phases=phases)

    def remove_observer(self, observer: Observer) -> None:
        """Call it no more; one that is not called any more is no error."""
        self._worker.observers.remove(observer)

    def finish_step(self) -> None:
        """Wait until the step that runs has ended, and those who watch were told of it: an answer
        is there before that."""
        self._worker.call(lambda: None)

    # --- looking and steering ----------------------------------------------------------------

    @property
    def device_info(self) -> DeviceInfo:
        return self.device.info

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs."""
        return self._worker.busy

    @property
    def ended(self) -> KvrtError | None:
        """Why nothing can be asked any more: it was closed, or its engine has stopped; None: it
        can."""
        return self._worker.ended

    def stats(self) -> RuntimeStats:
        return stats_of(self._worker.engine, self._worker.load_seconds)

    def picture(
        self, cells: int = 512, *, owner: Callable[[Any], str] | None = None
    ) -> tuple[GroupPicture, ...]:
        """Where in the KV memory pages are, to be drawn. Does not wait.

        Args:
            cells: of each group of layers, the memory is told of in at most so many.
            owner: whose a request is, by its metadata: then it is told whose the pages are that
                requests hold. Cached ones are nobody's.
        """
        cells = check_options({"cells": Whole(1, 65536)}, cells=cells)["cells"]
        return self._worker.engine.picture(cells, owner)

    def queue(self, most: int = 100) -> tuple[Queued, ...]:
        """Requests that wait, the next one first, and why. Does not wait.

        Args:
            most: of them, at most.
        """
        most = check_options({"most": Whole(1, 65536)}, most=most)["most"]
        return self._worker.engine.queue(most)

    def set_memory_limit(self, limit: int | str, revision: int | None = None) -> LimitChange:
        """Change what weights and KV cache together may take, in bytes, while running.

        What is held above it is given back at once if the engine is idle, else after each step as
        pages come free. See `kvrt.kv.cache.KVCache.set_memory_limit`.

        Raises:
            CapacityError: the weights leave no room for a single page.
        """
        checked = check_options(LIMIT, limit=limit, revision=revision)
        change = set_limit(
            self.cache,
            self.model.weight_bytes,
            checked["limit"],
            self.device_info,
            checked["revision"],
        )
        self._worker.tell(Signal.LIMIT_CHANGED)
        return change

    # --- the end -----------------------------------------------------------------------------

    def close(self, timeout: float | None = CLOSE_TIMEOUT_S) -> None:
        """Abort what runs, save to `cache_dir`, give all memory back. Safe to call twice.

        It returns within its time even if the device never does: whoever waits for an answer then
        gets a `DeviceError`, and the device's memory goes back with the process. Afterwards `stats`
        and what describes the `model` can still be asked for, its tokenizer included; its weights
        are gone.

        Args:
            timeout: seconds after which saving stops; so does an exception in the caller, such as
                Ctrl-C. What was saved until then is whole. None, or infinity: as long as it takes.

        Raises:
            ConfigError: `timeout` is negative or no number; nothing was closed.
            DeviceError: the device did not give back what it had, and nothing has said so before.
        """
        self._worker.close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _wishes(
    params: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> Sequence[SamplingParams | None]:
    """Each prompt's, if they are one for all or a list of as many."""
    if isinstance(params, SamplingParams | None):
        return [params] * count
    if not isinstance(params, list | tuple):
        check_request(STREAM, params=params)
    if len(params) != count:
        raise ConfigError(f"{count} prompts, but {len(params)} sampling parameters")
    return params
