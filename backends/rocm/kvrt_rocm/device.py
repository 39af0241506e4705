"""An AMD GPU as a device."""

from functools import partial

from kvrt_kernels.driver.device import About, GpuDevice
from kvrt_kernels.gpu import Place

from kvrt.errors import BackendUnavailable
from kvrt.spi import DeviceOptions

from . import driver
from .calls import RocmCalls, attribute, call, properties
from .memory import RocmMemory

NEVER_RUN = "the rocm backend was compiled and emulated, and never run on AMD hardware"


def open_device(index: int, options: DeviceOptions, place: Place) -> GpuDevice:
    """Open a device that is there.

    It does not declare ALIASING, though the runtime can map a chunk twice: on RDNA, what is written
    at one address may not be seen at the other, and no other architecture was tried.

    Args:
        index: the device's.
        options: `shareable` lets chunks be exported to other processes.
        place: how torch sees its memory, and what computes there.

    Raises:
        BackendUnavailable: it has no virtual memory management; torch cannot use it; or two
            ROCm runtimes are in this process.
    """
    place.enter(index)
    call("hipInit", 0)
    driver.require_one_runtime()
    if not attribute(index, "VirtualMemoryManagementSupported"):
        raise BackendUnavailable(
            f"rocm device {index} has no virtual memory management",
            fix="use another device, or --backend cpu",
        )
    found = properties(index)
    about = About(
        backend="rocm",
        index=index,
        name=found.name,
        arch=found.arch,
        multiprocessors=found.multiprocessors,
        capabilities=frozenset(),
        notes=(NEVER_RUN,),
    )
    take = partial(RocmCalls, index, shareable=options.shareable)
    return GpuDevice(about, place, take, RocmMemory)
