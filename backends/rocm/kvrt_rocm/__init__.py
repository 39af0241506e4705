"""The ROCm backend: AMD GPUs, by hip-python and Triton kernels.

driver    what to look for
calls     the runtime's calls, of which `kvrt_kernels.driver` makes a device
memory    where ROCm maps memory in ways of its own
device    what the runtime says of a device
"""

from kvrt_kernels.dlpack import ROCM
from kvrt_kernels.driver.backend import GpuBackend
from kvrt_kernels.gpu import Place, TorchPlace

from kvrt.spi import Device, DeviceOptions

from .driver import VENDOR

TORCH = TorchPlace(
    "ROCm",
    build="hip",
    device_type=ROCM,
    triton=("triton", "triton-rocm", "pytorch-triton-rocm"),
)


class RocmBackend(GpuBackend):
    """See `kvrt.spi.Backend`.

    Args:
        place: see `GpuBackend`.
    """

    def __init__(self, place: Place = TORCH) -> None:
        super().__init__(VENDOR, place, "ROCm", "update ROCm")

    def device(self, index: int, options: DeviceOptions, place: Place) -> Device:
        from .device import open_device

        return open_device(index, options, place)


backend = RocmBackend()
