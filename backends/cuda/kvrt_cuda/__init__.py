"""The CUDA backend: NVIDIA GPUs, by cuda-python's driver binding and Triton kernels.

driver    what to look for
calls     the driver's calls, of which `kvrt_kernels.driver` makes a device
device    what the driver says of one
"""

from kvrt_kernels.dlpack import CUDA
from kvrt_kernels.driver.backend import GpuBackend
from kvrt_kernels.gpu import Place, TorchPlace

from kvrt.spi import Device, DeviceOptions

from .driver import VENDOR

TORCH = TorchPlace("CUDA", build="cuda", device_type=CUDA, triton=("triton",))


class CudaBackend(GpuBackend):
    """See `kvrt.spi.Backend`.

    Args:
        place: see `GpuBackend`.
    """

    def __init__(self, place: Place = TORCH) -> None:
        super().__init__(VENDOR, place, "a driver for CUDA", "update the NVIDIA driver")

    def device(self, index: int, options: DeviceOptions, place: Place) -> Device:
        from .device import open_device

        return open_device(index, options, place)


backend = CudaBackend()
