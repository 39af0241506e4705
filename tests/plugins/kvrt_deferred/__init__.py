"""A device that is correct and as asynchronous as the contract allows: `kvrt_null`, but later.

Torch's operators, `append` and `run` are posted to one thread, and each copy has a thread of its
own. Every method but those that wait returns at once.
"""

import random
import threading
import time
from dataclasses import replace

import kvrt_null
from torch import Tensor

from kvrt.errors import BackendUnavailable
from kvrt.spi import (
    AttentionBatch,
    AttentionParams,
    Backend,
    Capability,
    Device,
    DeviceInfo,
    DeviceOptions,
    DType,
    PagedAttention,
    Probe,
    Span,
    Ticket,
)
from kvrt.wrappers import Wrapper
from kvrt.wrappers.parts import WrappedMemory
from kvrt_deferred import tensors
from kvrt_deferred.tensors import COMPUTE, PLACE, Deferred, Event

tensors.install()


class Memory(WrappedMemory):
    def tensor(self, span: Span, dtype: DType) -> Tensor:
        return Deferred(super().tensor(span, dtype))


class Copier:
    """Each copy on a thread of its own, behind its ticket and a little late."""

    def __init__(self) -> None:
        self._random = random.Random(0)
        self._lock = threading.Lock()
        self._flight: list[Event] = []

    def host_buffer(self, nbytes: int) -> Tensor:
        return kvrt_null.Copier().host_buffer(nbytes)

    def copy(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        event, (to, source) = Event(), (getattr(tensor, "stored", tensor) for tensor in (dst, src))
        with self._lock:
            late = self._random.random() * tensors.SHORT_SECONDS * 5
            self._flight = [event for event in self._flight if not event.done()] + [event]

        def work() -> None:
            time.sleep(late)
            kvrt_null.Copier().copy(to, source, after)

        threading.Thread(target=event.run, args=(work,), daemon=True).start()
        return event

    to_host = to_device = within = copy

    def wait(self) -> None:
        with self._lock:
            flight = list(self._flight)
        for event in flight:
            event.wait()


class Attention:
    """The inner device's, on the tensors that are stored, when it is their turn."""

    def __init__(self, inner: PagedAttention) -> None:
        self._inner = inner

    def plan(self, batch: AttentionBatch) -> object:
        return self._inner.plan(replace(batch, kv=batch.kv.stored))

    def append(self, plan: object, layer: int, k: Tensor, v: Tensor) -> None:
        keys, values = k.stored, v.stored
        COMPUTE.post(lambda: self._inner.append(plan, layer, keys, values))

    def run(
        self, plan: object, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        queries, to = q.stored, out.stored
        if params.sink_logits is not None:
            params = replace(params, sink_logits=params.sink_logits.stored)
        COMPUTE.post(lambda: self._inner.run(plan, layer, queries, to, params))


class DeferredDevice(Wrapper):
    def __init__(self) -> None:
        super().__init__(kvrt_null.NullDevice())
        self.memory = Memory(self, self.inner.memory)
        self.copier = self._copies = Copier()
        self.attention = Attention(self.inner.attention)

    @property
    def info(self) -> DeviceInfo:
        info = self.inner.info
        return replace(
            info,
            backend="deferred",
            name="make-believe device that is late",
            torch_device=PLACE,
            compute_dtypes=("float32",),
            kv_formats=("float32", "bfloat16"),
            capabilities=info.capabilities | {Capability.ASYNC_COPIES},
        )

    def fence(self) -> Ticket:
        return COMPUTE.post(lambda: None)

    def synchronize(self) -> None:
        COMPUTE.drain()
        self._copies.wait()

    def close(self) -> None:
        self.synchronize()
        super().close()


class DeferredBackend:
    name = "deferred"
    spi = 2

    def probe(self) -> Probe:
        return Probe(available=True, detail="1 make-believe device", devices=1)

    def open(self, index: int = 0, options: DeviceOptions = DeviceOptions()) -> Device:
        if index != 0:
            raise BackendUnavailable(f"deferred has one device, 0; there is no device {index}")
        return DeferredDevice()


backend: Backend = DeferredBackend()
