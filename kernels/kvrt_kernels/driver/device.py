"""A GPU as a device, whoever made it."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar, cast

from kvrt.spi import Capability, Collectives, DeviceInfo, Extension, Ticket
from kvrt_kernels.driver.calls import Calls
from kvrt_kernels.driver.copier import StreamCopier
from kvrt_kernels.driver.memory import MappedMemory
from kvrt_kernels.driver.tickets import Events
from kvrt_kernels.gpu import Place


@dataclass(frozen=True, slots=True)
class About:
    """What its driver says of a device.

    Args:
        backend: the backend's name.
        index: the device's.
        name: the product.
        arch: such as ``sm_90`` or ``gfx942``.
        multiprocessors: how many compute units it has.
        capabilities: those that do not depend on its kernels.
        notes: what a user should be told.
    """

    backend: str
    index: int
    name: str
    arch: str
    multiprocessors: int
    capabilities: frozenset[Capability]
    notes: tuple[str, ...] = ()


Own = TypeVar("Own", bound=Calls)


class GpuDevice:
    """See `kvrt.spi.Device`.

    Args:
        about: what it is.
        place: entered already; how torch sees its memory, and what computes there.
        take: begins to use it.
        memory: what maps its memory.
    """

    def __init__(
        self,
        about: About,
        place: Place,
        take: Callable[[], Own],
        memory: Callable[[int, Own, Place], MappedMemory] = MappedMemory,
    ) -> None:
        index = about.index
        self._index = index
        self._place = place
        with ExitStack() as undo:
            calls = take()
            undo.callback(calls.close)
            kernels = place.kernels(index, about.arch, about.multiprocessors)
            self.memory = memory(index, calls, place)
            total = self.memory.info().total
            self._events = Events(calls)
            self.copier = StreamCopier(calls, self._events)
            undo.pop_all()
        self._calls: Calls = calls
        self.attention = kernels.attention
        self._extensions = kernels.extensions
        capabilities = {*about.capabilities, Capability.ASYNC_COPIES}
        capabilities |= {Capability.TREES, Capability.VALUE_WIDTHS}
        if kernels.batch_invariant:
            capabilities.add(Capability.BATCH_INVARIANT)
        self.info = DeviceInfo(
            backend=about.backend,
            index=index,
            name=about.name,
            arch=about.arch,
            total_bytes=total,
            granularity=self.memory.granularity,
            torch_device=place.torch_device(index),
            compute_dtypes=kernels.compute_dtypes,
            weight_dtypes=kernels.weight_dtypes,
            kv_formats=kernels.kv_formats,
            capabilities=frozenset(capabilities),
            notes=(*about.notes, *self.memory.notes),
            head_dims=kernels.head_dims,
        )

    def extension(self, kind: type[Extension]) -> Extension | None:
        if cast(object, kind) is Collectives:
            from kvrt_kernels.collective import TorchCollectives, over_links

            return cast(Extension, TorchCollectives(over_links))
        return cast(Extension | None, self._extensions.get(kind))

    def fence(self) -> Ticket:
        return self._events.record(self._place.stream(self._index))

    def synchronize(self) -> None:
        self._calls.synchronize()

    def close(self) -> None:
        """Give everything back. What fails is left, and another call tries it again.

        Raises:
            DeviceError: something could not be given back.
        """
        if self._calls.closed:
            return
        with ExitStack() as last_first:
            last_first.callback(self.memory.close)
            last_first.callback(self._events.close)
            last_first.callback(self.copier.close)
            last_first.callback(self._calls.synchronize)
        self._calls.close()
