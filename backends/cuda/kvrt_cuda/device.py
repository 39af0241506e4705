"""An NVIDIA GPU as a device."""

from functools import partial

from kvrt_kernels.driver.device import About, GpuDevice
from kvrt_kernels.gpu import Place

from kvrt.errors import BackendUnavailable
from kvrt.spi import Capability, DeviceOptions

from .calls import CudaCalls, attribute, call


def open_device(index: int, options: DeviceOptions, place: Place) -> GpuDevice:
    """Open a device that is there.

    Args:
        index: the device's.
        options: `shareable` lets chunks be exported to other processes, where the device can.
        place: how torch sees its memory, and what computes there.

    Raises:
        BackendUnavailable: it has no virtual memory management, or torch cannot use it.
    """
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
    shareable = options.shareable and bool(
        attribute(device, "HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED")
    )
    about = About(
        backend="cuda",
        index=index,
        name=name,
        arch=f"sm_{major}{minor}",
        multiprocessors=attribute(device, "MULTIPROCESSOR_COUNT"),
        capabilities=frozenset({Capability.ALIASING}),
    )
    return GpuDevice(about, place, partial(CudaCalls, index, shareable=shareable))
