"""An NVIDIA GPU as a device."""

from contextlib import ExitStack
from typing import cast

from kvrt_kernels.gpu import Place

from kvrt.errors import BackendUnavailable
from kvrt.spi import Capability, DeviceInfo, DeviceOptions, Extension, Ticket

from .calls import Context, attribute, call
from .copier import CudaCopier
from .memory import CudaMemory
from .tickets import Events


class CudaDevice:
    """See `kvrt.spi.Device`.

    Args:
        index: of a device that is there.
        options: `shareable` lets chunks be exported to other processes.
        place: how torch sees its memory, and what computes there.

    Raises:
        BackendUnavailable: it has no virtual memory management, or torch cannot use it.
    """

    def __init__(self, index: int, options: DeviceOptions, place: Place) -> None:
        self._index = index
        self._place = place
        place.enter(index)
        call("cuInit", 0)
        device = call("cuDeviceGet", index)
        if not attribute(device, "VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED"):
            raise BackendUnavailable(
                f"cuda device {index} has no virtual memory management",
                fix="use another device, or --backend cpu",
            )
        name = call("cuDeviceGetName", 256, device).split(b"\0")[0].decode()
        major = attribute(device, "COMPUTE_CAPABILITY_MAJOR")
        minor = attribute(device, "COMPUTE_CAPABILITY_MINOR")
        units = attribute(device, "MULTIPROCESSOR_COUNT")
        arch = f"sm_{major}{minor}"
        with ExitStack() as undo:
            self._context = Context(index)
            undo.callback(self._context.close)
            kernels = place.kernels(index, arch, units)
            self.memory = CudaMemory(index, self._context, place, shareable=options.shareable)
            total = self.memory.info().total
            self._events = Events(self._context)
            self.copier = CudaCopier(index, self._context, self._events)
            undo.pop_all()
        self.attention = kernels.attention
        self._extensions = kernels.extensions
        capabilities = {Capability.ALIASING, Capability.ASYNC_COPIES, Capability.TREES}
        if kernels.batch_invariant:
            capabilities.add(Capability.BATCH_INVARIANT)
        self.info = DeviceInfo(
            backend="cuda",
            index=index,
            name=name,
            arch=arch,
            total_bytes=total,
            granularity=self.memory.granularity,
            torch_device=place.torch_device(index),
            compute_dtypes=kernels.compute_dtypes,
            weight_dtypes=kernels.weight_dtypes,
            kv_formats=kernels.kv_formats,
            capabilities=frozenset(capabilities),
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
