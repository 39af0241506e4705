"""An AMD GPU as a device."""

from contextlib import ExitStack
from typing import cast

from kvrt_kernels.gpu import Place

from kvrt.errors import BackendUnavailable
from kvrt.spi import Capability, DeviceInfo, DeviceOptions, Extension, Ticket

from . import driver
from .calls import Context, attribute, call, properties
from .copier import RocmCopier
from .memory import RocmMemory
from .tickets import Events

NEVER_RUN = "the rocm backend was compiled and emulated, and never run on AMD hardware"


class RocmDevice:
    """See `kvrt.spi.Device`.

    It does not declare ALIASING, though the runtime can map a chunk twice: on RDNA, what is written
    at one address may not be seen at the other, and no other architecture was tried.

    Args:
        index: of a device that is there.
        options: `shareable` lets chunks be exported to other processes.
        place: how torch sees its memory, and what computes there.

    Raises:
        BackendUnavailable: it has no virtual memory management; torch cannot use it; or two
            ROCm runtimes are in this process.
    """

    def __init__(self, index: int, options: DeviceOptions, place: Place) -> None:
        self._index = index
        self._place = place
        place.enter(index)
        call("hipInit", 0)
        driver.require_one_runtime()
        if not attribute(index, "VirtualMemoryManagementSupported"):
            raise BackendUnavailable(
                f"rocm device {index} has no virtual memory management",
                fix="use another device, or --backend cpu",
            )
        found = properties(index)
        with ExitStack() as undo:
            self._context = Context(index)
            undo.callback(self._context.close)
            kernels = place.kernels(index, found.arch, found.multiprocessors)
            self.memory = RocmMemory(index, self._context, place, shareable=options.shareable)
            total = self.memory.info().total
            self._events = Events(self._context)
            self.copier = RocmCopier(index, self._context, self._events)
            undo.pop_all()
        self.attention = kernels.attention
        self._extensions = kernels.extensions
        capabilities = {Capability.ASYNC_COPIES, Capability.TREES}
        if kernels.batch_invariant:
            capabilities.add(Capability.BATCH_INVARIANT)
        self.info = DeviceInfo(
            backend="rocm",
            index=index,
            name=found.name,
            arch=found.arch,
            total_bytes=total,
            granularity=self.memory.granularity,
            torch_device=place.torch_device(index),
            compute_dtypes=kernels.compute_dtypes,
            weight_dtypes=kernels.weight_dtypes,
            kv_formats=kernels.kv_formats,
            capabilities=frozenset(capabilities),
            notes=(NEVER_RUN, *self.memory.notes),
            head_dims=kernels.head_dims,
        )

    def extension(self, kind: type[Extension]) -> Extension | None:
        return cast(Extension | None, self._extensions.get(kind))

    def fence(self) -> Ticket:
        return self._events.record(self._place.stream(self._index))

    def synchronize(self) -> None:
        self._context.synchronize()

    def close(self) -> None:
        """Give everything back. What fails is left, and another call tries it again.

        Raises:
            DeviceError: something could not be given back.
        """
        if self._context.closed:
            return
        with ExitStack() as last_first:
            last_first.callback(self.memory.close)
            last_first.callback(self._events.close)
            last_first.callback(self.copier.close)
            last_first.callback(self._context.synchronize)
        self._context.close()
