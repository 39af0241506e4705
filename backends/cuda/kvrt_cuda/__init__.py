"""The CUDA backend: NVIDIA GPUs, by cuda-python's driver binding and Triton kernels."""

from kvrt_kernels.dlpack import CUDA
from kvrt_kernels.gpu import Place, TorchPlace

from kvrt.errors import BackendUnavailable
from kvrt.spi import Device, DeviceOptions, Probe

from . import driver

TORCH = TorchPlace("CUDA", build="cuda", device_type=CUDA, triton=("triton",))


class CudaBackend:
    """See `kvrt.spi.Backend`. Importing this loads neither torch nor the driver.

    Args:
        place: how torch sees the devices' memory, and what computes there.
    """

    name = "cuda"
    spi = 1

    def __init__(self, place: Place = TORCH) -> None:
        self._place = place

    def probe(self) -> Probe:
        found = driver.look()
        if found.fix or not found.devices:
            return Probe(False, found.detail, found.fix, found.devices)
        software = self._place.software()
        detail = f"{found.detail}, {software.detail}"
        if software.fix:
            return Probe(False, detail, software.fix, found.devices)
        if software.version[:1] > found.version[:1]:
            built = ".".join(map(str, software.version))
            detail = f"{detail}: torch needs a driver for CUDA {built}"
            return Probe(False, detail, "update the NVIDIA driver", found.devices)
        return Probe(True, detail, devices=found.devices)

    def open(self, index: int = 0, options: DeviceOptions = DeviceOptions()) -> Device:
        probe = self.probe()
        if not probe.available:
            raise BackendUnavailable(
                f"the cuda backend cannot be used: {probe.detail}",
                fix=probe.fix or "use --backend cpu",
            )
        if index >= probe.devices:
            raise BackendUnavailable(
                f"there is no cuda device {index}: there {_are(probe.devices)}",
                fix=f"use a device from 0 to {probe.devices - 1}",
            )
        from .device import CudaDevice

        return CudaDevice(index, options, self._place)


def _are(count: int) -> str:
    return "is 1" if count == 1 else f"are {count}"


backend = CudaBackend()
