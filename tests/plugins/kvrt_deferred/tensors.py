"""Tensors whose numbers come later: torch's operators as an asynchronous device runs them.

A tensor on ``deferred:0`` has its memory at once, a tensor of the host's, and its operators are
posted to one thread, which runs them in their order. What only looks at memory in another way, a
view, is ready at once, as on any device; what asks for a number waits for it.
"""

import functools
import os
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

PLACE = "deferred:0"
SHORT_SECONDS = 0.001


class Event:
    """A ticket of work on a thread."""

    def __init__(self) -> None:
        self._happened = threading.Event()
        self._error: BaseException | None = None

    def run(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
        finally:
            self._happened.set()

    def done(self) -> bool:
        return self._happened.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        done = self._happened.wait(timeout)
        if self._error is not None:
            raise self._error
        return done


class Stream:
    """Work in order, on a thread of its own that is late now and then."""

    def __init__(self, seed: int = 0) -> None:
        self._work: queue.SimpleQueue[tuple[Event, Callable[[], object]]] = queue.SimpleQueue()
        self._random = random.Random(seed)
        self._failed: Event | None = None
        threading.Thread(target=self._serve, name="deferred-compute", daemon=True).start()

    def post(self, work: Callable[[], object]) -> Event:
        event = Event()
        self._work.put((event, work))
        return event

    def drain(self) -> None:
        """Wait for everything that was posted; raises what it raised."""
        self.post(lambda: None).wait()
        if self._failed is not None:
            failed, self._failed = self._failed, None
            failed.wait()

    def _serve(self) -> None:
        while True:
            event, work = self._work.get()
            if self._random.random() < 0.1:
                time.sleep(self._random.random() * SHORT_SECONDS)
            with torch.inference_mode():
                event.run(work)
            if event._error is not None:
                self._failed = self._failed or event
            del work, event


COMPUTE = Stream(int(os.environ.get("KVRT_DEFERRED_SEED", "0")))
CALLED: Counter[str] = Counter()
"""How often each operator was called on this device, by the name of its overload."""


class Deferred(Tensor):
    """See above. `stored` has its memory, and at last its numbers."""

    stored: Tensor

    @staticmethod
    def __new__(cls, real: Tensor) -> "Deferred":
        made = torch.Tensor._make_wrapper_subclass(
            cls, real.size(), real.stride(), real.storage_offset(), dtype=real.dtype, device=PLACE
        )
        made.stored = real
        return made

    def data_ptr(self) -> int:
        return self.stored.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Deferred({list(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})


def call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator at once if it makes a view, later if its result's shape is known, and else
    when all before it is done."""
    if func._can_decompose():
        return func.decompose(*args, **kwargs)
    CALLED[str(func)] += 1
    flat, spec = pytree.tree_flatten((args, kwargs))
    to_host = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"
    schema = func._schema
    written = {
        id(value)
        for argument, value in _named(schema, args, kwargs)
        if argument.alias_info is not None and argument.alias_info.is_write
    }
    real_args = [_stored_in(value) for value in flat]
    host_target = any(
        isinstance(value, Tensor) and not isinstance(value, Deferred) and id(value) in written
        for value in flat
    )

    def run(values: list[Any]) -> Any:
        inner_args, inner_kwargs = pytree.tree_unflatten(values, spec)
        return func(*inner_args, **inner_kwargs)

    if any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns):
        return pytree.tree_map_only(Tensor, Deferred, run(real_args))
    if to_host or host_target:
        COMPUTE.drain()
        return run(real_args)
    # What the host has may change as soon as the call returns.
    posted = [
        value.clone() if isinstance(value, Tensor) and not isinstance(asked, Deferred) else value
        for value, asked in zip(real_args, flat, strict=True)
    ]
    if written:
        COMPUTE.post(lambda: run(posted))
        results = [value for value in flat if id(value) in written]
        return results[0] if len(results) == 1 else tuple(results)
    key = func, str(spec), tuple(_described(value) for value in real_args)
    if key not in _SHAPES:
        _SHAPES[key] = _shapes(lambda: run([_meta(value) for value in real_args]))
    shapes = _SHAPES[key]
    if shapes is None:
        COMPUTE.drain()
        return pytree.tree_map_only(Tensor, Deferred, run(real_args))
    results = pytree.tree_map(
        lambda like: torch.empty_strided(like.size(), like.stride(), dtype=like.dtype), shapes
    )

    def compute() -> None:
        for to, value in zip(
            pytree.tree_leaves(results), pytree.tree_leaves(run(posted)), strict=True
        ):
            to.copy_(value)

    COMPUTE.post(compute)
    return pytree.tree_map_only(Tensor, Deferred, results)


def _named(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[Any, Any]]:
    """The schema's arguments with their values."""
    pairs = list(zip(schema.arguments, args, strict=False))
    return pairs + [(a, kwargs[a.name]) for a in schema.arguments if a.name in kwargs]


def _stored_in(value: Any) -> Any:
    if isinstance(value, Deferred):
        return value.stored
    if isinstance(value, torch.device) and value.type == "deferred":
        return torch.device("cpu")
    return value


def _meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")
    return torch.device("meta") if isinstance(value, torch.device) else value


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.size()), value.stride(), value.dtype
    return value, type(value)


def _shapes(run: Callable[[], Any]) -> Any:
    """The result on the meta device; None if it is not tensors, or depends on their numbers."""
    try:
        result = run()
    except (NotImplementedError, RuntimeError):
        return None
    leaves = pytree.tree_leaves(result)
    known = leaves and all(isinstance(leaf, Tensor) for leaf in leaves)
    return result if known else None


_SHAPES: dict[Any, Any] = {}
"""What operators give, by what they are given: it takes long to find out."""

_library = torch.library.Library("aten", "IMPL")


def install() -> None:
    """Make ``deferred`` a device of torch's, in this process.

    What has no tensor of this device among its arguments, or is called by torch below its Python
    dispatch (`torch.tensor` of a list), is registered one by one.
    """
    _setup_privateuseone_for_python_backend("deferred")
    aten = torch.ops.aten
    for name, func in (
        ("empty.memory_format", aten.empty.memory_format),
        ("empty_strided", aten.empty_strided.default),
    ):
        _library.impl(name, functools.partial(_below, func), "PrivateUse1")
    _library.impl("_copy_from", _copy_from, "PrivateUse1")


def _below(func: Any, *args: Any, **kwargs: Any) -> Any:
    return call(func, args, kwargs)


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Any:
    return call(torch.ops.aten.copy_.default, (target, source), {})
